-- bqx_ml.market_regime: trend or range, and how lively the market is.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- 22023 unless the table has the column.
CREATE FUNCTION bqx._check_metric(family text, derived regclass, name text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names text[] := bqx._metrics_of(family, derived);
BEGIN
    IF name = ANY (names) IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = CASE WHEN name IS NULL THEN 'a width must not be NULL' ELSE format('%s has no column %s', derived, name) END,
            HINT = format('It has: %s.', bqx._listed(ARRAY(SELECT n FROM unnest(names) AS n WHERE n ~ ('^w[0-9]+' || regexp_replace(name, '^w[0-9]*', '') || '$')), 10));
    END IF;
END
$$;

-- SQL for regimes in [$1, $2), with the volatility since $3, the start of the month before.
CREATE FUNCTION bqx._market_regime_query(pair text, trend_width int, volatility_width int) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format(
        'WITH terciles AS ('
        'SELECT bqx._next_month(bqx._month_of(b.at)) AS month, '
               'percentile_disc(ARRAY[1 / 3.0, 2 / 3.0]) WITHIN GROUP (ORDER BY b.%2$I) AS until '
        'FROM %4$s AS b GROUP BY 1) '
        'SELECT r.at, CASE WHEN r.%1$s_r2 < $4 THEN ''range'' WHEN r.%1$s_slope_end > 0 THEN ''up'' WHEN r.%1$s_slope_end < 0 THEN ''down'' '
                          'WHEN r.%1$s_slope_end = 0 THEN ''range'' END, '
               'CASE WHEN b.%2$I < t.until[1] THEN ''low'' WHEN b.%2$I < t.until[2] THEN ''medium'' WHEN b.%2$I >= t.until[2] THEN ''high'' END, '
               'r.%1$s_r2, r.%1$s_slope_end, b.%2$I '
        'FROM %3$s AS r LEFT JOIN %5$s AS b ON b.at = r.at LEFT JOIN terciles AS t ON t.month = bqx._month_of(r.at) ORDER BY r.at',
        fit, volatility,
        bqx._rows_by_time(bqx._derived_table('reg', pair), 'ts_utc', ARRAY[fit || '_r2', fit || '_slope_end'], '$1', '$2'),
        bqx._rows_by_time(bqx._derived_table('bqx', pair), 'ts_utc', ARRAY[volatility], '$3', '$2'),
        bqx._rows_by_time(bqx._derived_table('bqx', pair), 'ts_utc', ARRAY[volatility], '$1', '$2'))
      FROM (SELECT format('w%s_reg', trend_width), format('w%s_bqx_stdev_index', volatility_width)) AS names (fit, volatility)
$$;

CREATE FUNCTION bqx_ml.market_regime(
    pair text, from_ts timestamp with time zone, to_ts timestamp with time zone, trend_width int DEFAULT 60,
    volatility_width int DEFAULT 60, trend_r2 double precision DEFAULT 0.5)
RETURNS TABLE (
    ts_utc timestamp with time zone, trend text, volatility_tercile text, r2 double precision, slope double precision,
    volatility double precision)
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 30000 SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET jit = off
AS $$
DECLARE
    known_pair text := bqx._check_pair(pair);
BEGIN
    PERFORM bqx._check_time_range(from_ts, to_ts);
    PERFORM bqx._check_metric('reg', bqx._derived_table('reg', known_pair), 'w' || trend_width || '_reg_r2'),
            bqx._check_metric('reg', bqx._derived_table('reg', known_pair), 'w' || trend_width || '_reg_slope_end'),
            bqx._check_metric('bqx', bqx._derived_table('bqx', known_pair), 'w' || volatility_width || '_bqx_stdev_index');
    IF (trend_r2 BETWEEN 0 AND 1) IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('trend_r2 must be between 0 and 1, not %s', coalesce(trend_r2::text, 'NULL')),
            HINT = 'From this r2 on, the fit counts as a trend.';
    END IF;
    RETURN QUERY EXECUTE bqx._market_regime_query(known_pair, trend_width, volatility_width)
        USING coalesce(from_ts, '-infinity'), coalesce(to_ts, 'infinity'),
              CASE WHEN isfinite(from_ts) THEN bqx._month_start(bqx._months_after(bqx._month_of(from_ts), -1)) ELSE coalesce(from_ts, '-infinity') END,
              trend_r2;
END
$$;
COMMENT ON FUNCTION bqx_ml.market_regime(
    text, timestamp with time zone, timestamp with time zone, int, int, double precision) IS
    'Whether the market of a pair goes up, down or ranges, and how volatile it is among the bars of the month before';

SET LOCAL search_path TO bqx, pg_temp;
