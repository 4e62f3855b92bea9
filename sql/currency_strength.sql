-- bqx_ml.currency_strength: a currency against all others.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- SQL for whether this is a number that has a logarithm. (NaN is greater than infinity.)
CREATE FUNCTION bqx._is_an_index(expression text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT format('%1$s > 0 AND %1$s < ''infinity''', expression) $$;

-- SQL for a currency's strength in [$1, $2), of its pairs in [starts, $2): since the last bar of each before $1. The sum of the logarithms is
-- in the order of the pairs' names, so that it is the same double every time.
CREATE FUNCTION bqx._currency_strength_query(currency text, members text[], starts timestamp with time zone[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET DateStyle = 'ISO'
AS $$
    SELECT format(
        'SELECT k.at, 100 * exp((%s) / %s), k.bars FROM ('
        'SELECT m.at, m.bars, %s FROM ('
        'SELECT r.at, count(*)::int AS bars, %s FROM (%s) AS r GROUP BY r.at) AS m WINDOW by_time AS (ORDER BY m.at)) AS k '
        'WHERE k.at >= $1 ORDER BY k.at',
        string_agg(format('k.v%s', i), ' + ' ORDER BY i), count(*),
        string_agg(format('bqx.last_known(m.v%s) OVER by_time AS v%1$s', i), ', ' ORDER BY i),
        string_agg(format('max(r.v) FILTER (WHERE r.i = %s) AS v%1$s', i), ', ' ORDER BY i),
        string_agg(format('SELECT b.at, %s AS i, CASE WHEN %s THEN %sln(b.rate_index / 100) END AS v FROM %s AS b', i,
                          bqx._is_an_index('b.rate_index'),
                          CASE WHEN upper(p.base) = currency THEN '' ELSE '-' END,
                          bqx._rows_by_time(bqx._m1_table(member), 'time', '{rate_index}', format('%L::timestamptz', starts[i]), '$2')),
                   ' UNION ALL ' ORDER BY i))
      FROM unnest(members) WITH ORDINALITY AS u (member, i) JOIN bqx.pairs AS p ON p.pair = member
$$;

-- The last bar of a pair before an instant that has an index; -infinity if there is none. Looked for in a stretch that grows.
CREATE FUNCTION bqx._last_indexed_before(pair text, instant timestamp with time zone) RETURNS timestamp with time zone
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
DECLARE
    span record := bqx._m1_span(bqx._m1_table(pair));
    before timestamptz := CASE WHEN instant <= span.last_bar THEN instant ELSE span.last_bar + interval '1 minute' END;
    reach interval := interval '24 hours';
    found timestamptz;
BEGIN
    WHILE found IS NULL AND isfinite(instant) AND isfinite(before) LOOP
        EXECUTE format('SELECT max(a.at) FROM %s AS a WHERE %s',
                       bqx._rows_by_time(bqx._m1_table(pair), 'time', '{rate_index}', '$1', '$2'), bqx._is_an_index('a.rate_index'))
           INTO found USING before - reach, before;
        EXIT WHEN (before - reach > span.first_bar) IS NOT TRUE;
        reach := 8 * reach;
    END LOOP;
    RETURN coalesce(found, '-infinity');
END
$$;

CREATE FUNCTION bqx_ml.currency_strength(currency text, from_ts timestamp with time zone, to_ts timestamp with time zone)
RETURNS TABLE (ts_utc timestamp with time zone, strength double precision, bars int)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 30000 SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET jit = off
AS $$
DECLARE
    -- Only these pairs' tables are looked at: others may not be the caller's to read.
    members text[] := ARRAY(SELECT p.pair FROM bqx.pairs AS p CROSS JOIN LATERAL to_regclass(format('bqx.%I', 'm1_' || p.pair)) AS m1
                             WHERE CASE WHEN upper(currency) IN (upper(p.base), upper(p.quote)) AND m1 IS NOT NULL
                                        THEN bqx._end_bar(bqx._m1_table(p.pair), true) IS NOT NULL END
                             ORDER BY p.pair);
    known text[];
BEGIN
    PERFORM bqx._check_time_range(from_ts, to_ts);
    IF members = '{}' THEN
        known := ARRAY(SELECT DISTINCT upper(c) FROM bqx.pairs AS p CROSS JOIN LATERAL (VALUES (p.base), (p.quote)) AS v (c)
                        WHERE p.pair = ANY (bqx._pairs_with_bars()) ORDER BY 1);
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('no pair with bars has the currency %s', coalesce(quote_literal(currency), 'NULL')),
            HINT = CASE WHEN known = '{}' THEN 'CALL bqx.load_m1(pair, file);  loads bars,  CALL bqx.simulate_m1(pairs, from_month, to_month);  makes some.'
                ELSE format('There are bars of %s.', bqx._listed(known, 20)) END;
    END IF;
    PERFORM bqx._check_has_index(m) FROM unnest(members) AS m;
    RETURN QUERY EXECUTE bqx._currency_strength_query(
            upper(currency), members,
            ARRAY(SELECT bqx._last_indexed_before(m, coalesce(from_ts, '-infinity')) FROM unnest(members) WITH ORDINALITY AS u (m, i) ORDER BY i))
        USING coalesce(from_ts, '-infinity'), coalesce(to_ts, 'infinity');
END
$$;
COMMENT ON FUNCTION bqx_ml.currency_strength(text, timestamp with time zone, timestamp with time zone) IS
    'Geometric mean of the rate indexes of a currency''s pairs, seen from it: 100 where all stand at their baselines, more where it is stronger';

SET LOCAL search_path TO bqx, pg_temp;
