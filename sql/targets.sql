-- bqx_ml.targets_<pair>, bqx_ml.targets and bqx_ml.training_set: what is to be predicted, beside what it is predicted from.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- What is to be predicted of a row: at its ts_utc plus so many minutes, the bqx_return over so many bars before that instant, and the change
-- of rate_index until then, in shares of what it is now.
CREATE TYPE bqx.target_row AS (ts_utc timestamp with time zone, target double precision, forward_return double precision);
COMMENT ON TYPE bqx.target_row IS 'What is to be predicted of a row, as bqx_ml.targets returns it';

CREATE FUNCTION bqx._check_horizons(horizons int[]) RETURNS int[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wrong int;
BEGIN
    SELECT h INTO wrong FROM unnest(horizons) AS h WHERE h IS NULL OR h NOT BETWEEN 1 AND 525600 LIMIT 1;
    IF FOUND OR coalesce(cardinality(horizons), 0) = 0 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = CASE WHEN FOUND THEN format('horizon %s is out of range', coalesce(wrong::text, 'NULL')) ELSE 'there is no horizon' END,
            HINT = 'Horizons are minutes ahead, from 1 to 525600 (a year).';
    END IF;
    RETURN ARRAY(SELECT DISTINCT h FROM unnest(horizons) AS h ORDER BY h);
END
$$;

-- Windows that targets are about: those that the table has.
CREATE FUNCTION bqx._check_target_widths(derived regclass, widths int[]) RETURNS int[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    names text[] := bqx._metrics_of('bqx', derived);
    wrong int;
BEGIN
    SELECT w INTO wrong FROM unnest(widths) AS w
     WHERE w IS NULL OR format('w%s_bqx_return', w) <> ALL (names) LIMIT 1;
    IF FOUND OR coalesce(cardinality(widths), 0) = 0 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = CASE WHEN FOUND THEN format('%s has no column w%s_bqx_return', derived, coalesce(wrong::text, 'NULL'))
                ELSE 'there is no width' END,
            HINT = format('It has: %s.', bqx._listed(ARRAY(SELECT n FROM unnest(names) AS n WHERE n ~ '^w[0-9]+_bqx_return$'), 10));
    END IF;
    RETURN ARRAY(SELECT DISTINCT w FROM unnest(widths) AS w ORDER BY w);
END
$$;

-- SQL for the view of targets.
CREATE FUNCTION bqx._targets_view_query(derived regclass, widths int[], horizons int[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('SELECT t.at AS ts_utc%s FROM %s AS t%s',
                  string_agg(format('%s, (h%s.rate_index - t.rate_index) / t.rate_index AS rate_index_return_h%2$s', later.columns, h),
                             '' ORDER BY h),
                  bqx._rows_by_time(derived, 'ts_utc', ARRAY['rate_index'], NULL, NULL),
                  string_agg(format(' LEFT JOIN %s AS h%s ON h%2$s.at = t.at + %L::interval',
                                    bqx._rows_by_time(derived, 'ts_utc', ARRAY['rate_index'] || later.names, NULL, NULL), h,
                                    make_interval(mins => h)), '' ORDER BY h))
      FROM unnest(horizons) AS h
     CROSS JOIN LATERAL (
        SELECT string_agg(format(', h%s.w%s_bqx_return AS w%2$s_bqx_return_h%1$s', h, w), '' ORDER BY w),
               array_agg(format('w%s_bqx_return', w) ORDER BY w)
          FROM unnest(widths) AS w) AS later (columns, names)
$$;

CREATE PROCEDURE bqx.create_targets(
    pairs text[] DEFAULT NULL, widths int[] DEFAULT '{60}', horizons int[] DEFAULT '{15,30,45,60,75,90,105}')
LANGUAGE plpgsql
AS $$
DECLARE
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    derived pg_catalog.regclass;
    done pg_catalog.text;
BEGIN
    PERFORM bqx._require_top_level('create_targets'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    PERFORM bqx._check_horizons(horizons);
    chosen := bqx._pairs_with_metrics(pairs);
    PERFORM bqx._check_target_widths(bqx._derived_table('bqx', p), widths) FROM unnest(chosen) AS p;
    FOREACH chosen_pair IN ARRAY chosen LOOP
        derived := bqx._derived_table('bqx', chosen_pair);
        done := bqx._make_ml_view(
            'targets_' || chosen_pair, false,
            bqx._targets_view_query(derived, bqx._check_target_widths(derived, widths), bqx._check_horizons(horizons)),
            format('What the metrics of %s will be some minutes later', chosen_pair),
            format('CALL bqx.create_targets(ARRAY[%L], %L, %L);', chosen_pair, widths, horizons), ARRAY[derived]);
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        RAISE NOTICE 'bqx_ml.targets_%: %', chosen_pair, done;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE bqx.create_targets(text[], int[], int[]) IS
    'Makes bqx_ml.targets_<pair>: bqx_return and the change of rate_index as they will stand some minutes later';

-- The bounds that _targets_query takes as $1 … $4: of rows, and of where their targets stand, which must be known by to_ts. A bar is known
-- a minute after it opens. (Reckoned here, since a bound that is reckoned in the query comes too late to leave partitions alone.)
CREATE FUNCTION bqx._target_bounds(from_ts timestamp with time zone, to_ts timestamp with time zone, horizon int)
RETURNS timestamp with time zone[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
    SELECT ARRAY[f, t, f + make_interval(mins => horizon), t - interval '1 minute' + interval '1 microsecond']
      FROM (SELECT coalesce(from_ts, '-infinity'), coalesce(to_ts, 'infinity')) AS ends (f, t)
$$;

CREATE FUNCTION bqx._targets_query(pair text, horizon int, width int) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('SELECT t.at, f.%I AS target, (f.rate_index - t.rate_index) / t.rate_index AS forward_return '
                  'FROM %s AS t JOIN %s AS f ON f.at = t.at + %L::interval WHERE f.%1$I IS NOT NULL',
                  value_name, bqx._rows_by_time(derived, 'ts_utc', ARRAY['rate_index'], '$1', '$2'),
                  bqx._rows_by_time(derived, 'ts_utc', ARRAY['rate_index', value_name], '$3', '$4'), make_interval(mins => horizon))
      FROM (SELECT bqx._derived_table('bqx', pair), format('w%s_bqx_return', width)) AS x (derived, value_name)
$$;

CREATE FUNCTION bqx_ml.targets(
    pair text, from_ts timestamp with time zone, to_ts timestamp with time zone, horizon int DEFAULT 60, width int DEFAULT 60)
RETURNS SETOF bqx.target_row
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 30000 SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET jit = off
AS $$
DECLARE
    known_pair text := bqx._check_pair(pair);
    bounds timestamptz[];
BEGIN
    PERFORM bqx._check_time_range(from_ts, to_ts);
    PERFORM bqx._check_horizons(ARRAY[horizon]), bqx._check_target_widths(bqx._derived_table('bqx', known_pair), ARRAY[width]);
    bounds := bqx._target_bounds(from_ts, to_ts, horizon);
    RETURN QUERY EXECUTE bqx._targets_query(known_pair, horizon, width) || ' ORDER BY t.at'
        USING bounds[1], bounds[2], bounds[3], bounds[4];
END
$$;
COMMENT ON FUNCTION bqx_ml.targets(text, timestamp with time zone, timestamp with time zone, int, int) IS
    'What is to be predicted of the bars of a pair in [from_ts, to_ts), as far as it is known by to_ts; NULL leaves an end open';

SET LOCAL search_path TO bqx, pg_temp;
