-- All stages in order, and the verification.

-- The baseline date of a pair when none was asked for: the recorded one, else 2024-07-01, else its first bar.
CREATE FUNCTION bqx._default_baseline_date(pair text) RETURNS timestamp with time zone
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    usual timestamptz := '2024-07-01 00:00:00+00';
    recorded timestamptz := (SELECT b.baseline_date FROM bqx.baseline_rates AS b WHERE b.pair = $1);
    span record;
BEGIN
    IF recorded IS NOT NULL THEN
        RETURN recorded;
    END IF;
    span := bqx._m1_span(bqx._m1_table(pair));
    IF span.first_bar <= usual AND span.last_bar >= usual THEN
        RETURN usual;
    END IF;
    IF span.first_bar IS NOT NULL THEN
        RAISE NOTICE '%: no bar at 2024-07-01, its first bar (%) is the baseline', pair, span.first_bar;
    END IF;
    RETURN coalesce(span.first_bar, usual);
END
$$;

CREATE PROCEDURE bqx.run_pipeline(
    pairs text[] DEFAULT NULL, baseline_date timestamp with time zone DEFAULT NULL,
    from_month date DEFAULT NULL, to_month date DEFAULT NULL, workers int DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen pg_catalog.text[];
    chosen_pair pg_catalog.text;
    run bigint;
    wrong pg_catalog.text[];
    checks bigint;
BEGIN
    PERFORM bqx._require_top_level('run_pipeline'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    PERFORM bqx._check_month_range(from_month, to_month);
    PERFORM bqx._check_workers(workers);
    chosen := bqx._pairs_or_all(pairs);
    FOREACH chosen_pair IN ARRAY chosen LOOP
        CALL bqx.set_baselines(coalesce(baseline_date, bqx._default_baseline_date(chosen_pair)), ARRAY[chosen_pair]);
    END LOOP;
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    CALL bqx.index_m1(chosen);
    CALL bqx.create_tables(NULL::pg_catalog.text[], chosen, from_month, to_month);
    CALL bqx.backfill(NULL::pg_catalog.text[], chosen, from_month, to_month, workers, false, true, run);
    SET LOCAL search_path TO pg_catalog, pg_temp;
    SELECT array_agg(format('%s: %s %s %s: %s', v.check_name, v.family, v.pair, to_char(v.month, 'YYYY-MM'), v.detail))
               FILTER (WHERE NOT v.ok), count(*)
      INTO wrong, checks
      FROM bqx.verify(NULL::pg_catalog.text[], chosen, from_month, to_month) AS v;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'data_corrupted',
            MESSAGE = format('verification: %s of %s checks failed', cardinality(wrong), checks),
            DETAIL = array_to_string(wrong[1:20], E'\n'),
            HINT = 'SELECT * FROM bqx.verify() WHERE NOT ok;';
    END IF;
    RAISE NOTICE 'verification: all % checks hold', checks;
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
END
$$;
COMMENT ON PROCEDURE bqx.run_pipeline(text[], timestamp with time zone, date, date, int) IS
    'All stages in order, from baselines to backfill, and verification';
