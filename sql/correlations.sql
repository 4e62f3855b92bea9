-- compute_correlations: how each feature of a pair goes with what is to be predicted, month by month.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

CREATE FUNCTION bqx._ensure_correlations() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regclass('bqx_ml.correlations') IS NULL THEN
        CREATE TABLE bqx_ml.correlations (
            pair text NOT NULL,
            month date NOT NULL,
            feature text NOT NULL,
            target text NOT NULL,
            horizon int NOT NULL,
            n bigint NOT NULL,
            pearson double precision,
            spearman double precision,
            computed_at timestamp with time zone NOT NULL DEFAULT pg_catalog.now(),
            PRIMARY KEY (pair, month, target, horizon, feature)
        );
        COMMENT ON TABLE bqx_ml.correlations IS
            'How a feature goes with the target so many minutes later, over the rows of a month, by bqx.compute_correlations';
    END IF;
END
$$;

-- What is read of the table of BQX metrics: the target, too, where it is of a window that is not a default one.
CREATE FUNCTION bqx._correlated_metrics(target text) RETURNS text[]
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN target = ANY (bqx._metric_names('bqx')) THEN bqx._metric_names('bqx') ELSE bqx._metric_names('bqx') || target END;

-- The queries that _correlations takes. Targets are a column of the first, which reads on to where they stand. Parameters: the month's ends, and
-- where the last targets stand.
CREATE FUNCTION bqx._correlated_queries(pair text, target text) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(format('SELECT r.at, %s FROM %s AS r',
                            (SELECT string_agg(format('r.%I', n), ', ' ORDER BY i) FROM unnest(names) WITH ORDINALITY AS u (n, i)),
                            bqx._rows_by_time(rel, time_column, names, '$1', until)) ORDER BY ordinal)
      FROM (VALUES (1, bqx._derived_table('bqx', pair), 'ts_utc', bqx._correlated_metrics(target), '$3'),
                   (2, bqx._m1_table(pair), 'time', bqx._bar_columns(), '$2'),
                   (3, bqx._derived_table('reg', pair), 'ts_utc', bqx._metric_names('reg'), '$2')) AS s (ordinal, rel, time_column, names, until)
$$;

-- Computes one pair's month anew, by these queries. Targets may lie in the next month.
CREATE FUNCTION bqx._correlate_month(pair text, month date, horizon int, target_name text, queries text[]) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
#variable_conflict use_column
DECLARE
    month_ends timestamptz := bqx._month_start(bqx._next_month($2));
    names text[] := bqx._correlated_metrics(target_name) || bqx._bar_columns() || bqx._metric_names('reg');
    done bigint;
BEGIN
    DELETE FROM bqx_ml.correlations AS c WHERE c.pair = $1 AND c.month = $2 AND c.target = target_name AND c.horizon = $3;
    INSERT INTO bqx_ml.correlations (pair, month, feature, target, horizon, n, pearson, spearman)
    SELECT $1, $2, names[c.position], target_name, $3, c.n, c.pearson, c.spearman
      FROM bqx._correlations(queries,
                             ARRAY[bqx._month_start($2), month_ends, month_ends + make_interval(mins => $3)],
                             array_position(names, target_name), $3) AS c
     WHERE c.n > 0;
    GET DIAGNOSTICS done = ROW_COUNT;
    RETURN done;
END
$$;

CREATE PROCEDURE bqx.compute_correlations(
    pairs text[] DEFAULT NULL, from_month date DEFAULT NULL, to_month date DEFAULT NULL, horizon int DEFAULT 60, width int DEFAULT 60)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    chosen_month pg_catalog.date;
    span record;
    months int;
    target_name pg_catalog.text;
    queries pg_catalog.text[];
BEGIN
    PERFORM bqx._require_top_level('compute_correlations'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    PERFORM bqx._check_month_range(from_month, to_month);
    PERFORM bqx._check_horizons(ARRAY[horizon]);
    chosen := bqx._pairs_with_metrics(pairs);
    PERFORM bqx._check_target_widths(bqx._derived_table('bqx', p), ARRAY[width]) FROM unnest(chosen) AS p;
    PERFORM bqx._ensure_correlations();
    target_name := format('w%s_bqx_return', width);
    FOREACH chosen_pair IN ARRAY chosen LOOP
        span := bqx._m1_span(bqx._m1_table(chosen_pair));
        queries := bqx._correlated_queries(chosen_pair, target_name);
        months := 0;
        FOR chosen_month IN
            SELECT m FROM bqx._months(greatest(from_month, bqx._month_of(span.first_bar)), least(to_month, bqx._month_of(span.last_bar))) AS m
        LOOP
            months := months + (bqx._correlate_month(chosen_pair, chosen_month, horizon, target_name, queries) > 0)::int;
            COMMIT;
            SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
            SET LOCAL search_path TO pg_catalog, pg_temp;
        END LOOP;
        RAISE NOTICE '%: % month(s) correlated with w%_bqx_return % minutes later', chosen_pair, months, width, horizon;
    END LOOP;
END
$$;
COMMENT ON PROCEDURE bqx.compute_correlations(text[], date, date, int, int) IS
    'Fills bqx_ml.correlations: how each feature goes with bqx_return some minutes later, by pair and month';

SET LOCAL search_path TO bqx, pg_temp;
