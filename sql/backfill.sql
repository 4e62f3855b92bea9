-- Stages 1.5.4.3 and 1.5.5.3: one job per family, pair and month, one transaction each. The jobs of a pair and
-- month are claimed together, so that its bars are read once for both families.

-- Whether the month's rows are those computed from just this input.
CREATE FUNCTION bqx._month_is_current(family text, pair text, month date) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    recorded record;
    derived regclass := bqx._derived_table(family, pair);
    stored bigint;
BEGIN
    SELECT r.* INTO recorded FROM bqx._recorded_month(family, pair, month) AS r;
    IF recorded.input_fingerprint IS NULL THEN
        RETURN false;
    END IF;
    -- Counted, not believed: an unlogged table is empty after a crash.
    EXECUTE format('SELECT count(*) FROM %s AS t WHERE t.ts_utc >= %s AND t.ts_utc < %s', derived,
                   bqx._as_key(derived, 'ts_utc', '$1'), bqx._as_key(derived, 'ts_utc', '$2'))
       INTO stored USING bqx._month_start(month), bqx._month_start(bqx._next_month(month));
    RETURN stored = recorded.bars AND recorded.input_fingerprint = (
        SELECT f.input_fingerprint
          FROM bqx._own_columns(family, derived) AS own,
               bqx._input_fingerprint(bqx._m1_table(pair), bqx._month_start(month),
                                      bqx._month_start(bqx._next_month(month)), own.lookback, own.shape) AS f);
END
$$;

-- What to do about errors of PostgreSQL's that come without a hint.
CREATE FUNCTION bqx._hint_for(error_code text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE error_code
        WHEN '53100' THEN 'Make room on the disk, or ALTER TABLE … SET TABLESPACE.'
        WHEN '53200' THEN 'Let the server have more memory, or use fewer workers.'
        WHEN '55P03' THEN 'Another session held a lock for longer than lock_timeout; pg_locks shows locks.' END
$$;

-- An error's message and DETAIL on one line.
CREATE FUNCTION bqx._with_detail(message text, detail text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT message || CASE WHEN detail <> '' THEN ' (' || detail || ')' ELSE '' END $$;

-- Runs the jobs of one pair and month for these families, and records how they ended. What fails leaves the month
-- as it was. Returns true if all went well.
CREATE FUNCTION bqx._run_jobs(
    run_id bigint, pair text, month date, families text[], job_ids bigint[], worker int) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    one_family text;
    todo text[] := '{}';
    written record;
    m1_identity text;
    seen pg_snapshot;
    message text;
    detail text;
    hint text;
    code text;
BEGIN
    PERFORM bqx._show_claim(run_id, worker, pair, to_char(month, 'YYYY-MM'), families, job_ids);
    BEGIN
        PERFORM bqx._lock_tables(pair, families);
        PERFORM bqx._lock_partition_to_write(to_regclass(format('bqx.%I', bqx._derived_name(f, pair))), month) FROM unnest(families) AS f;
        -- before the bars are read
        m1_identity := (SELECT i.identity FROM bqx._m1_identities(pair, ARRAY[month]) AS i);
        seen := pg_current_snapshot();
        FOREACH one_family IN ARRAY families LOOP
            IF NOT bqx._run_force(run_id) AND bqx._month_is_current(one_family, pair, month) THEN
                PERFORM bqx._finish_job(run_id, one_family, pair, month, 'done', worker, started,
                    r.bars, 0::bigint, 0::bigint, r.input_fingerprint, bqx._followed_as(one_family, pair, month, m1_identity), seen,
                    NULL::text, NULL::text, NULL::text)
                   FROM bqx._recorded_month(one_family, pair, month) AS r;
            ELSE
                todo := todo || one_family;
            END IF;
        END LOOP;
        IF todo <> '{}' THEN
            FOR written IN SELECT * FROM bqx._write_month(pair, todo, month) LOOP
                PERFORM bqx._finish_job(run_id, written.family, pair, month, 'done', worker, started,
                    written.bars, written.rows_written, written.rows_removed, written.input_fingerprint,
                    bqx._followed_as(written.family, pair, month, m1_identity), seen, NULL::text, NULL::text, NULL::text);
            END LOOP;
        END IF;
        RETURN true;
    EXCEPTION
        WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
                                    hint = PG_EXCEPTION_HINT, code = RETURNED_SQLSTATE;
    END;
    IF cardinality(families) > 1 THEN
        -- One family's trouble is not the other's: each on its own.
        RETURN (SELECT bool_and(bqx._run_jobs(run_id, pair, month, ARRAY[f], ARRAY[id], worker))
                  FROM unnest(families, job_ids) AS j (f, id));
    END IF;
    PERFORM bqx._finish_job(run_id, families[1], pair, month, 'failed', worker, started, NULL::bigint, NULL::bigint,
        NULL::bigint, NULL::text, NULL::text, NULL::pg_snapshot, bqx._with_detail(message, detail), code,
        coalesce(nullif(hint, ''), bqx._hint_for(code)));
    RETURN false;
END
$$;

-- Waits for a month that someone else works on. A lock_timeout is meant for tables: colleagues are waited for.
CREATE FUNCTION bqx._await_month(pair text, month date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = 0
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(bqx._month_lock(pair, month));
END
$$;

-- Waits for who computes rows because bars of the pair changed, and keeps others from it until the transaction ends: rows
-- that they store would get in each other's way. The caller must hold nothing that a feed waits for. So it is in no
-- deadlock; but where feeds of several pairs are, PostgreSQL may end whoever waits between them.
CREATE FUNCTION bqx._await_followers(pair text, shared boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = 0
AS $$
DECLARE
    key bigint := bqx._lock_key('pair', pair);
BEGIN
    LOOP
        BEGIN
            IF shared THEN
                PERFORM pg_advisory_xact_lock_shared(key);
            ELSE
                PERFORM pg_advisory_xact_lock(key);
            END IF;
            RETURN;
        EXCEPTION
            WHEN deadlock_detected THEN NULL;
        END;
    END LOOP;
END
$$;

-- Waits for who may be making a partition of the pair's tables: who loads bars, and who computes rows.
CREATE FUNCTION bqx._await_makers_of_partitions(pair text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(bqx._lock_key('m1', pair));  -- first, as they do
    PERFORM bqx._await_followers(pair, false);
END
$$;

CREATE FUNCTION bqx._month_lock(pair text, month date) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT bqx._lock_key('month', pair || to_char(month, ' YYYY-MM')) $$;

-- Claims and runs one pair and month of a run, in the caller's transaction; false when nothing is left to do.
-- Two runs never do the same month at once: whoever holds the month's lock works, the other waits for it last.
CREATE FUNCTION bqx._work_once(run_id bigint, worker int) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    claims_in_view CONSTANT int := 32;  -- more than there are workers, far less than a long run's jobs
    unit record;
    claimed record;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(bqx._lock_key('work', run_id::text));
    FOR attempt IN 1..2 LOOP
        FOR unit IN SELECT * FROM bqx._open_units(run_id, claims_in_view) LOOP
            IF attempt = 1 THEN
                CONTINUE WHEN NOT pg_try_advisory_xact_lock(bqx._month_lock(unit.pair, unit.month));
            ELSE
                PERFORM bqx._await_month(unit.pair, unit.month);
            END IF;
            -- Locked: is it still open, and for which families?
            SELECT j.* INTO claimed FROM bqx._open_jobs(run_id, unit.pair, unit.month) AS j;
            IF claimed.families IS NOT NULL THEN
                -- This lock excludes nobody: it only tells that the jobs are being done.
                PERFORM pg_try_advisory_xact_lock(bqx._lock_key('job', id::text)) FROM unnest(claimed.job_ids) AS id;
                PERFORM bqx._await_followers(unit.pair, true);
                PERFORM bqx._run_jobs(run_id, unit.pair, unit.month, claimed.families, claimed.job_ids, worker);
            END IF;
            RETURN true;  -- one month a transaction, whether it was still open or not
        END LOOP;
    END LOOP;
    PERFORM bqx._show_no_claim();
    RETURN false;
END
$$;

-- Everything that can be known to be wrong beforehand is said before the first job.
CREATE FUNCTION bqx._check_ready_for_backfill(pair text, families text[]) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_sees_all_rows(bqx._m1_table(pair));
    PERFORM bqx._check_has_index(pair);
    PERFORM bqx._check_sees_all_rows(bqx._derived_table(f, pair)) FROM unnest(families) AS f;
END
$$;

-- Months to fill within the months asked for: those of the pair's data, and those that were filled once and whose bars
-- have gone since. Rows of other months, an older system's for instance, are nobody's business.
CREATE FUNCTION bqx._months_to_fill(families text[], pair text, from_month date, to_month date) RETURNS date[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(
        SELECT m FROM (
            SELECT d.m FROM bqx._m1_span(bqx._m1_table(pair)) AS s,
                            bqx._months(bqx._month_of(s.first_bar), bqx._month_of(s.last_bar)) AS d (m)
            UNION SELECT r.m FROM bqx._recorded_months(families, pair) AS r (m)) AS known
         WHERE m >= coalesce(bqx._first_of_month(from_month), m) AND m <= coalesce(to_month, m)
         ORDER BY m)
$$;

-- Writes the plan of a run into the ledger; NULL where there is nothing to do.
CREATE FUNCTION bqx._plan_run(
    families text[], pairs text[], from_month date, to_month date, arguments jsonb) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    new_run bigint;
    planned_pair text;
BEGIN
    PERFORM bqx._check_ready_for_backfill(p, families) FROM unnest(pairs) AS p;
    new_run := bqx._open_run(arguments);
    FOREACH planned_pair IN ARRAY pairs LOOP
        PERFORM bqx._forget_answered(planned_pair);  -- by runs that nobody waited for
        PERFORM bqx._add_jobs(new_run, planned_pair, families, bqx._months_to_fill(families, planned_pair, from_month, to_month));
    END LOOP;
    RETURN new_run;
END
$$;

-- What a waiting call has told of its jobs: how many, and which of those that ended since an instant. Jobs are not
-- committed in the order of their ends, so that instant stays a little behind.
CREATE TYPE bqx._told AS (count bigint, since timestamp with time zone, job_ids bigint[]);

-- Says how the jobs went that ended and were not told yet.
CREATE FUNCTION bqx._tell_finished_jobs(run_id bigint, total bigint, told bqx._told) RETURNS bqx._told
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job record;
    title text;
BEGIN
    FOR job IN SELECT * FROM bqx._finished_jobs(run_id, told.since, told.job_ids) AS f LOOP
        told.count := told.count + 1;
        told.job_ids := told.job_ids || job.job_id;
        title := format('[%s/%s] %s %s %s', told.count, total, job.pair, to_char(job.month, 'YYYY-MM'), job.family);
        IF job.state = 'failed' THEN
            RAISE WARNING '%: %', title, job.error;
        ELSE
            RAISE NOTICE '%: % in % s', title, CASE WHEN job.rows_written = 0 AND job.rows_removed = 0 THEN 'unchanged'
                ELSE format('%s rows written', job.rows_written)
                     || CASE WHEN job.rows_removed > 0 THEN format(', %s removed', job.rows_removed) ELSE '' END END,
                round(job.seconds, 2);
        END IF;
    END LOOP;
    IF cardinality(told.job_ids) > 1000 THEN
        told.since := greatest(told.since, clock_timestamp() - interval '5 minutes');
        told.job_ids := ARRAY(SELECT f.job_id FROM bqx._finished_jobs(run_id, told.since, '{}'::bigint[]) AS f
                               WHERE f.job_id = ANY (told.job_ids));
    END IF;
    RETURN told;
END
$$;

-- The call's last word: an error that counts and names what failed, or was not done.
CREATE FUNCTION bqx._report_run(run_id bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    outcome record := bqx._run_outcome(run_id);
    failures text := array_to_string(outcome.failures[1:20], E'\n')
                  || CASE WHEN cardinality(outcome.failures) > 20
                     THEN format(E'\nand %s more', cardinality(outcome.failures) - 20) ELSE '' END;
BEGIN
    IF outcome.cancelled > 0 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'query_canceled',
            MESSAGE = format('run %s was cancelled: %s of its %s jobs are done', run_id, outcome.done, outcome.jobs),
            DETAIL = coalesce(failures, ''),
            HINT = format('CALL bqx.resume(%s);  does the others.', run_id);
    ELSIF outcome.failures IS NOT NULL THEN
        RAISE EXCEPTION USING
            -- one kind of trouble keeps its own code, so that callers can tell what it was
            ERRCODE = coalesce(outcome.common_code, 'P0001'),
            MESSAGE = format('%s of %s jobs of run %s failed', cardinality(outcome.failures), outcome.jobs, run_id)
                      || CASE WHEN outcome.open > 0 THEN format('; %s were not done: their worker ended early', outcome.open)
                              WHEN outcome.done > 0 THEN '; the others are done' ELSE '' END,
            DETAIL = failures,
            HINT = coalesce(outcome.common_hint || ' Then ',
                            format('SELECT * FROM bqx.jobs WHERE run_id = %s AND state = ''failed'';  names the causes. '
                                   'When they are mended, ', run_id))
                   || 'CALL bqx.backfill();  again: finished months are skipped.';
    ELSIF outcome.open > 0 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('%s of %s jobs of run %s were not done: their worker ended early',
                             outcome.open, outcome.jobs, run_id),
            HINT = format('The server log says why. CALL bqx.resume(%s);  does them.', run_id);
    END IF;
    RAISE NOTICE 'run %: % jobs done, % rows written', run_id, outcome.jobs, outcome.rows_written;
END
$$;

-- Lets workers go on without the calling session, once one has taken over. An error if none did.
CREATE FUNCTION bqx._let_workers_go(run_id bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    WHILE NOT EXISTS (SELECT FROM bqx._holders('run', run_id)) LOOP
        IF NOT bqx._await_workers(10) THEN
            IF (bqx._run_outcome(run_id)).open > 0 THEN
                PERFORM bqx._report_run(run_id);
            END IF;
            EXIT;
        END IF;
    END LOOP;
    PERFORM bqx._forget_workers();
END
$$;

-- Ends a call that can't have a background worker and won't wait: its run is given up.
CREATE FUNCTION bqx._refuse_without_worker() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'insufficient_resources',
        MESSAGE = 'no background worker slot is free',
        DETAIL = format('max_worker_processes is %s.', current_setting('max_worker_processes')),
        HINT = 'CALL bqx.backfill(workers => 0);  works in this session; raising max_worker_processes needs a restart.';
END
$$;

-- Works the open jobs of a run off: workers => 0 in this session, else by background workers, waited for or not.
CREATE PROCEDURE bqx._work_off(run_id bigint, workers int, wait boolean)
LANGUAGE plpgsql
AS $$
DECLARE
    jobs bigint;
    wanted int;
    started int := 0;
    told bqx._told;
    more boolean;
BEGIN
    SET LOCAL search_path TO pg_catalog, pg_temp;
    jobs := (bqx._run_outcome(run_id)).open;
    -- what a resumed run did before was told then
    told := ROW(0, '-infinity', ARRAY(SELECT f.job_id FROM bqx._finished_jobs(run_id, '-infinity', '{}'::bigint[]) AS f));
    wanted := least(coalesce(workers, bqx._useful_workers()), (SELECT count(*) FROM bqx._open_units(run_id, NULL::int)));
    IF wanted > 0 THEN
        started := bqx._start_workers(run_id, wanted);
        IF started > 0 AND NOT wait THEN
            PERFORM bqx._let_workers_go(run_id);
        ELSIF started = 0 AND NOT wait THEN
            PERFORM bqx._cancel_open_jobs(run_id);
            PERFORM bqx._close_run(run_id);
            PERFORM bqx._leave_run();
            COMMIT;
            SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
            SET LOCAL search_path TO pg_catalog, pg_temp;
            PERFORM bqx._refuse_without_worker();
        END IF;
        IF started < wanted THEN
            RAISE NOTICE '% of % background workers started (max_worker_processes = %)%', started, wanted,
                current_setting('max_worker_processes'),
                CASE started WHEN 0 THEN ': this session does the work' ELSE '' END;
        END IF;
    END IF;
    IF NOT wait AND (started > 0 OR jobs = 0) THEN
        IF jobs = 0 THEN
            RAISE NOTICE 'run %: nothing to do', run_id;
            PERFORM bqx._close_run(run_id);
        ELSE
            RAISE NOTICE 'run % goes on in the background: SELECT * FROM bqx.progress WHERE run_id = %;', run_id, run_id;
        END IF;
        PERFORM bqx._leave_run();
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        RETURN;
    END IF;

    LOOP
        PERFORM bqx._check_client();
        IF started > 0 THEN
            more := bqx._await_workers(200);
        ELSE
            more := bqx._work_once(run_id, 0);
        END IF;
        COMMIT;
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
        SET LOCAL search_path TO pg_catalog, pg_temp;
        told := bqx._tell_finished_jobs(run_id, jobs, told);
        EXIT WHEN NOT more;
    END LOOP;
    -- If it was cancel() that ended the workers, its word comes first.
    PERFORM pg_advisory_xact_lock(bqx._lock_key('run end', run_id::text));
    PERFORM bqx._close_run(run_id);
    PERFORM bqx._leave_run();
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    IF jobs = 0 THEN
        RAISE NOTICE 'run %: nothing to do', run_id;
    END IF;
    PERFORM bqx._report_run(run_id);
END
$$;

CREATE PROCEDURE bqx.backfill(
    families text[] DEFAULT NULL, pairs text[] DEFAULT NULL, from_month date DEFAULT NULL, to_month date DEFAULT NULL,
    workers int DEFAULT NULL, force boolean DEFAULT false, wait boolean DEFAULT true, INOUT run_id bigint DEFAULT NULL)
LANGUAGE plpgsql
AS $$
DECLARE
    chosen_families pg_catalog.text[];
    chosen pg_catalog.text[];
BEGIN
    PERFORM bqx._require_top_level('backfill'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    PERFORM bqx._check_workers(workers);
    chosen_families := bqx._check_families(families);
    PERFORM bqx._check_month_range(from_month, to_month);
    chosen := bqx._pairs_or_all(pairs);
    run_id := bqx._plan_run(chosen_families, chosen, from_month, to_month, jsonb_build_object(
        'families', chosen_families, 'pairs', chosen, 'from_month', from_month, 'to_month', to_month,
        'workers', workers, 'force', coalesce(force, false), 'wait', coalesce(wait, true)));
    PERFORM bqx._enter_run(run_id);  -- whoever sees the run sees that it goes on
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    CALL bqx._work_off(run_id, workers, coalesce(wait, true));
    SET LOCAL search_path TO pg_catalog, pg_temp;
    PERFORM bqx._forget_answered(p) FROM unnest(chosen) AS p;
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
END
$$;
COMMENT ON PROCEDURE bqx.backfill(text[], text[], date, date, int, boolean, boolean, bigint) IS
    'Stages 1.5.4.3 and 1.5.5.3: fills the derived tables, one transaction per month';
