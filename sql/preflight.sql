-- What stands outside functions with a search_path of their own (checks, views, bodies with RETURN) is parsed while this
-- script runs. Where there is any, it is parsed without bqx in the search_path, so that nothing that someone put into that
-- schema beforehand, such as an operator that matches better, is taken for PostgreSQL's own. Afterwards it is again as
-- CREATE EXTENSION set it, for the functions in Rust, whose CREATE names no schema.
SET LOCAL search_path TO pg_catalog, pg_temp;

-- Before anything is made: whose schema is this, and is anything of an older system in our way?
DO $preflight$
DECLARE
    old record;
    aside text;
    n int;
BEGIN
    FOR old IN
        SELECT s.nspname, r.rolname
          FROM pg_catalog.pg_namespace AS s
          JOIN pg_catalog.pg_roles AS r ON r.oid = s.nspowner
         WHERE s.nspname IN ('bqx', 'bqx_ml') AND NOT (r.rolsuper OR r.rolname = current_user)
         ORDER BY s.nspname
    LOOP
        RAISE EXCEPTION USING
            ERRCODE = 'insufficient_privilege',
            MESSAGE = pg_catalog.format('schema "%s" is owned by role "%s"', old.nspname, old.rolname),
            DETAIL = 'The owner of the schema could replace the extension''s functions and so run code as whoever calls them.',
            HINT = pg_catalog.format('ALTER SCHEMA %I OWNER TO %I;  then CREATE EXTENSION bqx; again.', old.nspname, current_user);
    END LOOP;
    FOR old IN
        SELECT p.oid::pg_catalog.regprocedure AS function
          FROM pg_catalog.pg_proc AS p
          JOIN pg_catalog.pg_namespace AS s ON s.oid = p.pronamespace
         WHERE s.nspname = 'bqx_ml' AND p.proname IN ('features', 'related', 'targets', 'training_set')
         ORDER BY p.oid
    LOOP
        RAISE EXCEPTION USING
            ERRCODE = 'duplicate_function',
            MESSAGE = pg_catalog.format('function %s was there before', old.function),
            DETAIL = 'The extension has a function of this name.',
            HINT = pg_catalog.format('ALTER FUNCTION %s RENAME TO …;  then CREATE EXTENSION bqx; again.', old.function);
    END LOOP;

    -- Tables of an older system keep their rows under another name; m1_*, bqx_* and reg_* tables stay as they are.
    FOR old IN
        SELECT c.relname, c.relkind
          FROM pg_catalog.pg_class AS c
         WHERE c.relnamespace = 'bqx'::pg_catalog.regnamespace
           AND c.relname IN ('pairs', 'baseline_rates', 'rejected_bars', 'm1_staging',
                             'run_ledger', 'job_ledger', 'month_ledger', 'bar_changes',
                             'runs', 'jobs', 'progress', 'pair_progress', 'recent', 'storage', 'dashboard',
                             'window_metrics', 'quadratic_fit', 'feature_row', 'related_row', 'target_row', 'training_row')
         ORDER BY c.relname
    LOOP
        aside := old.relname || '_before_bqx';
        n := 1;
        WHILE pg_catalog.to_regclass('bqx.' || pg_catalog.quote_ident(aside)) IS NOT NULL LOOP
            n := n + 1;
            aside := pg_catalog.format('%s_before_bqx_%s', old.relname, n);
        END LOOP;
        EXECUTE pg_catalog.format('ALTER %s bqx.%I RENAME TO %I',
            CASE old.relkind WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END, old.relname, aside);
        -- A WARNING, because CREATE EXTENSION silences notices.
        RAISE WARNING USING
            MESSAGE = pg_catalog.format('bqx.%s was there before: it is now bqx.%s', old.relname, aside),
            DETAIL = 'Its rows, owner and rights are unchanged; the extension does not use them.';
    END LOOP;

    -- Machine-learning relations live beside the extension, so that DROP EXTENSION leaves them alone.
    IF pg_catalog.to_regnamespace('bqx_ml') IS NULL THEN
        CREATE SCHEMA bqx_ml;
        -- While it is a member: a grant after that would count as the extension's own, and not be dumped.
        GRANT USAGE ON SCHEMA bqx_ml TO PUBLIC;
        ALTER EXTENSION bqx DROP SCHEMA bqx_ml;
    END IF;
END
$preflight$;

GRANT USAGE ON SCHEMA bqx TO PUBLIC;

SET LOCAL search_path TO bqx, pg_temp;
