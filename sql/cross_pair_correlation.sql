-- bqx.cross_pair_correlation: how pairs move together.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- The bar so many before an instant, of those that two pairs both have; -infinity if there are not as many. Looked for in a stretch that grows
-- until it holds as many, so that a short look back does not read a long history.
CREATE FUNCTION bqx._common_bar_before(one text, other text, instant timestamp with time zone, bars int) RETURNS timestamp with time zone
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
DECLARE
    first_bar timestamptz := greatest((bqx._m1_span(bqx._m1_table(one))).first_bar, (bqx._m1_span(bqx._m1_table(other))).first_bar);
    last_bar timestamptz := least((bqx._m1_span(bqx._m1_table(one))).last_bar, (bqx._m1_span(bqx._m1_table(other))).last_bar);
    before timestamptz := CASE WHEN instant <= last_bar THEN instant ELSE last_bar + interval '1 minute' END;
    reach interval := make_interval(mins => 2 * bars) + interval '168 hours';
    found timestamptz;
BEGIN
    WHILE found IS NULL AND isfinite(instant) AND isfinite(before) LOOP
        EXECUTE format('SELECT a.at FROM %s AS a JOIN %s AS b ON b.at = a.at WHERE a.close IS NOT NULL AND b.close IS NOT NULL '
                       'ORDER BY a.at DESC OFFSET %s LIMIT 1',
                       bqx._rows_by_time(bqx._m1_table(one), 'time', '{close}', '$1', '$2'),
                       bqx._rows_by_time(bqx._m1_table(other), 'time', '{close}', '$1', '$2'), bars - 1)
           INTO found USING before - reach, before;
        EXIT WHEN (before - reach > first_bar) IS NOT TRUE;
        reach := 4 * reach;
    END LOOP;
    RETURN coalesce(found, '-infinity');
END
$$;

-- SQL for the correlation of two pairs, in [$2, $3), of bars from $1 on. Bars count that both have, with a
-- close; each one's return is since the one before.
CREATE FUNCTION bqx._cross_pair_query(one text, other text, width int) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format(
        'SELECT c.at, %L::text, %L::text, c.correlation '
        'FROM (SELECT r.at, CASE WHEN count(*) OVER frame = %s THEN bqx.rolling_corr(r.one, r.other) OVER frame END AS correlation '
              'FROM (SELECT a.at, a.close / lag(a.close) OVER by_time - 1 AS one, b.close / lag(b.close) OVER by_time - 1 AS other '
                    'FROM %s AS a JOIN %s AS b ON b.at = a.at WHERE a.close IS NOT NULL AND b.close IS NOT NULL '
                    'WINDOW by_time AS (ORDER BY a.at)) AS r '
              'WHERE r.one IS NOT NULL AND r.other IS NOT NULL '
              'WINDOW frame AS (ORDER BY r.at ROWS %s PRECEDING)) AS c '
        'WHERE c.at >= $2 ORDER BY c.at',
        one, other, width, bqx._rows_by_time(bqx._m1_table(one), 'time', '{close}', '$1', '$3'),
        bqx._rows_by_time(bqx._m1_table(other), 'time', '{close}', '$1', '$3'), width - 1)
$$;

CREATE FUNCTION bqx.cross_pair_correlation(
    pairs text[], from_ts timestamp with time zone, to_ts timestamp with time zone, width int)
RETURNS TABLE (ts_utc timestamp with time zone, pair text, other text, correlation double precision)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 30000 SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET jit = off
AS $$
DECLARE
    chosen text[] := coalesce(bqx._check_pairs(pairs), bqx._pairs_with_bars());
    one text;
    another text;
BEGIN
    PERFORM bqx._check_time_range(from_ts, to_ts);
    IF (width BETWEEN 2 AND 100000) IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('width must be between 2 and 100000, not %s', coalesce(width::text, 'NULL')),
            DETAIL = 'The width is the number of returns that a correlation is of.';
    END IF;
    IF coalesce(cardinality(chosen), 0) < 2 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'there are no two pairs to compare',
            HINT = 'Name at least two pairs that have bars.';
    END IF;
    FOR one, another IN
        SELECT a.pair, b.pair
          FROM unnest(chosen) WITH ORDINALITY AS a (pair, i) JOIN unnest(chosen) WITH ORDINALITY AS b (pair, i) ON a.i < b.i
         ORDER BY a.i, b.i
    LOOP
        RETURN QUERY EXECUTE bqx._cross_pair_query(one, another, width)
            USING bqx._common_bar_before(one, another, from_ts, width + 1), coalesce(from_ts, '-infinity'), coalesce(to_ts, 'infinity');
    END LOOP;
END
$$;
COMMENT ON FUNCTION bqx.cross_pair_correlation(text[], timestamp with time zone, timestamp with time zone, int) IS
    'Correlation of the last returns of each two of these pairs (NULL: all), at the bars in [from_ts, to_ts) that both have';

SET LOCAL search_path TO bqx, pg_temp;
