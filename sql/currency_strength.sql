-- bqx_ml.currency_strength: a currency against all others.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- SQL for a currency's strength in [$2, $3), of bars from $1 on. The sum of the logarithms is in the order of the pairs' names, so that it is
-- the same double every time.
CREATE FUNCTION bqx._currency_strength_query(currency text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    WITH members AS (
        SELECT row_number() OVER (ORDER BY p.pair) AS i, CASE WHEN upper(p.base) = currency THEN '' ELSE '-' END AS sign,
               bqx._rows_by_time(bqx._m1_table(p.pair), 'time', '{rate_index}', '$1', '$3') AS bars
          FROM bqx.pairs AS p
         WHERE currency IN (upper(p.base), upper(p.quote)) AND p.pair = ANY (bqx._pairs_with_bars())
    )
    SELECT format(
        'SELECT k.at, 100 * exp((%s) / %s), k.bars FROM ('
        'SELECT m.at, m.bars, %s FROM ('
        'SELECT r.at, count(*)::int AS bars, %s FROM (%s) AS r GROUP BY r.at) AS m WINDOW by_time AS (ORDER BY m.at)) AS k '
        'WHERE k.at >= $2 ORDER BY k.at',
        string_agg(format('k.v%s', i), ' + ' ORDER BY i), count(*),
        string_agg(format('bqx.last_known(m.v%s) OVER by_time AS v%1$s', i), ', ' ORDER BY i),
        string_agg(format('max(r.v) FILTER (WHERE r.i = %s) AS v%1$s', i), ', ' ORDER BY i),
        string_agg(format('SELECT b.at, %s AS i, %sln(b.rate_index / 100) AS v FROM %s AS b', i, sign, bars), ' UNION ALL ' ORDER BY i))
      FROM members
$$;

CREATE FUNCTION bqx_ml.currency_strength(currency text, from_ts timestamp with time zone, to_ts timestamp with time zone)
RETURNS TABLE (ts_utc timestamp with time zone, strength double precision, bars int)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 30000 SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
DECLARE
    known text[] := ARRAY(SELECT DISTINCT upper(c) FROM bqx.pairs AS p CROSS JOIN LATERAL (VALUES (p.base), (p.quote)) AS v (c)
                           WHERE p.pair = ANY (bqx._pairs_with_bars()) ORDER BY 1);
BEGIN
    PERFORM bqx._check_time_range(from_ts, to_ts);
    IF upper(currency) = ANY (known) IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('no pair with bars has the currency %s', coalesce(quote_literal(currency), 'NULL')),
            HINT = CASE WHEN known = '{}' THEN 'CALL bqx.ingest_m1(pair);  or  CALL bqx.simulate_m1(pairs, from_month, to_month);  makes bars.'
                ELSE format('There are bars of %s.', bqx._listed(known, 20)) END;
    END IF;
    RETURN QUERY EXECUTE bqx._currency_strength_query(upper(currency))
        USING bqx._read_from(from_ts, 0), coalesce(from_ts, '-infinity'), coalesce(to_ts, 'infinity');
END
$$;
COMMENT ON FUNCTION bqx_ml.currency_strength(text, timestamp with time zone, timestamp with time zone) IS
    'Geometric mean of the rate indexes of a currency''s pairs, seen from it: 100 where all stand at their baselines, more where it is stronger';

SET LOCAL search_path TO bqx, pg_temp;
