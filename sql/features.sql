-- bqx_ml.features_<pair> and bqx_ml.features: bars with their metrics of both families, one row a bar.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

-- The columns of M1 that features have, besides the time.
CREATE FUNCTION bqx._bar_columns() RETURNS text[]
LANGUAGE sql IMMUTABLE
RETURN ARRAY['open', 'high', 'low', 'close', 'volume', 'rate_index'];

-- The metrics of a family's own windows: its columns without the time, rate_index and created_at.
CREATE FUNCTION bqx._metric_names(family text) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(c.name ORDER BY c.position) FROM bqx._metric_columns(family, NULL) AS c
     WHERE c.name NOT IN ('ts_utc', 'rate_index', 'created_at')
$$;

-- What a model can be given of a bar, in the order of bqx_ml.features.
CREATE FUNCTION bqx._feature_names() RETURNS text[]
LANGUAGE sql IMMUTABLE
RETURN bqx._bar_columns() || bqx._metric_names('bqx') || bqx._metric_names('reg');

-- The metrics that a derived table has, of whatever windows, in table order.
CREATE FUNCTION bqx._metrics_of(family text, derived regclass) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(array_agg(n ORDER BY i), '{}')
      FROM unnest((bqx._own_columns(family, derived)).names) WITH ORDINALITY AS u (n, i)
     WHERE n NOT IN ('ts_utc', 'rate_index', 'created_at')
$$;

-- What bqx_ml.features returns: `time` and `ts_utc` are the same instant, under the name that M1 has for it and the one that derived
-- tables have.
DO $make$
BEGIN
    EXECUTE pg_catalog.format('CREATE TYPE bqx.feature_row AS (pair text, time timestamptz, ts_utc timestamptz, %s)',
        (SELECT pg_catalog.string_agg(pg_catalog.format('%I double precision', n), ', ' ORDER BY i)
           FROM pg_catalog.unnest(bqx._feature_names()) WITH ORDINALITY AS u (n, i)));
END
$make$;
COMMENT ON TYPE bqx.feature_row IS 'A bar with its BQX and REG metrics, as bqx_ml.features returns it';

-- SQL for columns of a table, as doubles; NULL for those that it lacks.
CREATE FUNCTION bqx._as_doubles(rel regclass, alias text, names text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format(CASE WHEN t.type_name IS NULL THEN ', NULL::double precision AS %2$I'
                                  WHEN t.type_name = 'double precision' THEN ', %1$I.%2$I'
                                  ELSE ', %1$I.%2$I::double precision AS %2$I' END, alias, n), '' ORDER BY i)
      FROM unnest(names) WITH ORDINALITY AS u (n, i)
     CROSS JOIN LATERAL (SELECT bqx._column_type(rel, n)) AS t (type_name)
$$;

-- SQL for the rows of a table as (at timestamptz, …), of a stretch of time if its ends are given, as SQL of type timestamptz. Whatever
-- joins such relations bounds each of them: PostgreSQL reads every partition of a table that is bounded only by what it is joined with.
CREATE FUNCTION bqx._rows_by_time(rel regclass, time_column text, names text[], from_ts text, to_ts text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('(SELECT %s AS at%s FROM %s AS t%s)',
                  bqx._as_instant(rel, time_column), bqx._as_doubles(rel, 't', names), rel,
                  CASE WHEN from_ts IS NOT NULL THEN
                      format(' WHERE t.%1$I >= %2$s AND t.%1$I < %3$s', time_column, bqx._as_key(rel, time_column, from_ts),
                             bqx._as_key(rel, time_column, to_ts)) END)
$$;

-- SQL for a pair's bars with these metrics, NULL where they have none yet, after columns of the caller's. In a stretch of time if its ends are
-- given, and then in the order of time.
CREATE FUNCTION bqx._features_query(
    pair text, bqx_names text[], reg_names text[], from_ts text DEFAULT NULL, to_ts text DEFAULT NULL, columns_before text DEFAULT '') RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format(
        'SELECT %sm.at AS time, m.at AS ts_utc%s FROM %s AS m LEFT JOIN %s AS b ON b.at = m.at LEFT JOIN %s AS r ON r.at = m.at%s',
        columns_before,
        (SELECT string_agg(format(', %s.%I', alias, n), '' ORDER BY alias <> 'm', alias, i)
           FROM (VALUES ('m', bqx._bar_columns()), ('b', bqx_names), ('r', reg_names)) AS s (alias, names)
          CROSS JOIN LATERAL unnest(names) WITH ORDINALITY AS u (n, i)),
        bqx._rows_by_time(bqx._m1_table(pair), 'time', bqx._bar_columns(), from_ts, to_ts),
        bqx._rows_by_time(bqx._derived_table('bqx', pair), 'ts_utc', bqx_names, from_ts, to_ts),
        bqx._rows_by_time(bqx._derived_table('reg', pair), 'ts_utc', reg_names, from_ts, to_ts),
        CASE WHEN from_ts IS NOT NULL THEN ' ORDER BY m.at' END)
$$;

-- SQL for rows of bqx_ml.features, in [$1, $2). (Around a query that sorts, another would copy each row once more.)
CREATE FUNCTION bqx._feature_rows_query(pair text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT bqx._features_query(pair, bqx._metric_names('bqx'), bqx._metric_names('reg'), 'coalesce($1, ''-infinity''::timestamptz)',
                               'coalesce($2, ''infinity''::timestamptz)', format('%L::text AS pair, ', pair))
$$;

-- One pair after the other, so that no statement is over the partitions of all. Where one pair is asked for, the planner may take the pair's
-- own function instead: src/one_pair.rs.
CREATE FUNCTION bqx_ml.features(pairs text[], from_ts timestamp with time zone, to_ts timestamp with time zone)
RETURNS SETOF bqx.feature_row
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED ROWS 30000 SUPPORT bqx._of_one_pair SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
DECLARE
    chosen text[] := bqx._pairs_with_metrics(pairs);
    one_pair text;
BEGIN
    PERFORM bqx._check_time_range(from_ts, to_ts);
    FOREACH one_pair IN ARRAY chosen LOOP
        RETURN QUERY EXECUTE bqx._feature_rows_query(one_pair) USING from_ts, to_ts;
    END LOOP;
END
$$;
COMMENT ON FUNCTION bqx_ml.features(text[], timestamp with time zone, timestamp with time zone) IS
    'Bars of pairs (NULL: all) in [from_ts, to_ts) with their BQX and REG metrics; NULL leaves an end open';

-- NULL: the pairs that have both derived tables.
CREATE FUNCTION bqx._pairs_with_metrics(pairs text[]) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chosen text[] := bqx._check_pairs(pairs);
BEGIN
    IF chosen IS NOT NULL THEN
        PERFORM bqx._m1_table(p), bqx._derived_table('bqx', p), bqx._derived_table('reg', p) FROM unnest(chosen) AS p;
        RETURN chosen;
    END IF;
    chosen := ARRAY(SELECT p.pair FROM bqx.pairs AS p
                     WHERE to_regclass(format('bqx.%I', 'm1_' || p.pair)) IS NOT NULL
                       AND to_regclass(format('bqx.%I', bqx._derived_name('bqx', p.pair))) IS NOT NULL
                       AND to_regclass(format('bqx.%I', bqx._derived_name('reg', p.pair))) IS NOT NULL
                     ORDER BY p.pair);
    IF chosen = '{}' THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_table',
            MESSAGE = 'no pair has derived tables of both families',
            HINT = 'CALL bqx.create_tables();  makes them,  CALL bqx.backfill();  fills them.';
    END IF;
    RETURN chosen;
END
$$;

CREATE PROCEDURE bqx.create_features(pairs text[] DEFAULT NULL, materialized boolean DEFAULT false)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    done pg_catalog.text;
    call pg_catalog.text;
BEGIN
    PERFORM bqx._require_top_level('create_features'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    chosen := bqx._pairs_with_metrics(pairs);
    FOREACH chosen_pair IN ARRAY chosen LOOP
        call := format('CALL bqx.create_features(ARRAY[%L]%s);', chosen_pair, CASE WHEN materialized THEN ', materialized => true' ELSE '' END);
        done := bqx._make_ml_view(
            'features_' || chosen_pair, coalesce(materialized, false),
            bqx._features_query(chosen_pair, bqx._metrics_of('bqx', bqx._derived_table('bqx', chosen_pair)),
                                bqx._metrics_of('reg', bqx._derived_table('reg', chosen_pair))),
            format('Bars of %s with their BQX and REG metrics', chosen_pair), call, bqx._tables_of_features(chosen_pair));
        PERFORM bqx._make_ml_function('features_' || chosen_pair, 'feature_row', bqx._feature_rows_query(chosen_pair),
                                      format('Rows of bqx_ml.features for %s', chosen_pair), call,
                                      bqx._tables_of_features(chosen_pair));
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        RAISE NOTICE 'bqx_ml.features_%: %', chosen_pair, done;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE bqx.create_features(text[], boolean) IS
    'Makes bqx_ml.features_<pair>: bars with their BQX and REG metrics, one row a bar';

CREATE PROCEDURE bqx.refresh_features(pairs text[] DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    features pg_catalog.regclass;
    is_filled boolean;
    refreshed int := 0;
BEGIN
    PERFORM bqx._require_top_level('refresh_features'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    chosen := coalesce(bqx._check_pairs(pairs), ARRAY(SELECT p.pair FROM bqx.pairs AS p ORDER BY p.pair));
    FOREACH chosen_pair IN ARRAY chosen LOOP
        features := to_regclass(format('bqx_ml.%I', 'features_' || chosen_pair));
        IF features IS NULL AND pairs IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = 'undefined_table',
                MESSAGE = format('relation bqx_ml.features_%s does not exist', chosen_pair),
                HINT = format('CALL bqx.create_features(ARRAY[%L], materialized => true);', chosen_pair);
        END IF;
        is_filled := NULL;
        SELECT c.relispopulated INTO is_filled FROM pg_class AS c WHERE c.oid = features AND c.relkind = 'm';
        IF is_filled IS NULL THEN
            IF pairs IS NOT NULL THEN
                RAISE NOTICE 'bqx_ml.features_% is a view: it is always up to date', chosen_pair;
            END IF;
            CONTINUE;
        END IF;
        EXECUTE format('REFRESH MATERIALIZED VIEW %s %s', CASE WHEN is_filled THEN 'CONCURRENTLY' ELSE '' END, features);
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        refreshed := refreshed + 1;
        RAISE NOTICE 'bqx_ml.features_%: refreshed', chosen_pair;
    END LOOP;
    IF refreshed = 0 AND pairs IS NULL THEN
        RAISE NOTICE 'no features are materialized: views are always up to date';
    END IF;
END
$$;
COMMENT ON PROCEDURE bqx.refresh_features(text[]) IS
    'Brings materialized bqx_ml.features_<pair> up to date, while they are read';

SET LOCAL search_path TO bqx, pg_temp;
