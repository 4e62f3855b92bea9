-- Ending a run from another session, and taking up again what one left undone.

-- Asks the sessions that work for a run to end (its workers), or to end what they do (a calling session that works
-- itself). With the rights of who calls: PostgreSQL lets members of their role. Those of other roles, who took up a run of
-- the caller's, find at the end of their month that it was cancelled.
CREATE FUNCTION bqx._signal_run(run_id bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    at_work record;
BEGIN
    FOR at_work IN
        SELECT a.pid, a.backend_type FROM bqx._holders('work', run_id) AS pid JOIN pg_stat_activity AS a USING (pid)
    LOOP
        BEGIN
            IF at_work.backend_type = 'bqx worker' THEN
                PERFORM pg_terminate_backend(at_work.pid);
            ELSE
                PERFORM pg_cancel_backend(at_work.pid);
            END IF;
        EXCEPTION
            WHEN insufficient_privilege THEN NULL;
        END;
    END LOOP;
END
$$;

CREATE FUNCTION bqx.cancel(run_id bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = 0
AS $$
DECLARE
    patience CONSTANT timestamptz := clock_timestamp() + interval '10 seconds';
    was_open boolean;
    working int;
BEGIN
    PERFORM bqx._require_writable('cancel'::text);
    IF (bqx._run_outcome(run_id)).open = 0 THEN
        RETURN false;
    END IF;
    -- The waiting call looks at how its run ended after this transaction.
    PERFORM pg_advisory_xact_lock(bqx._lock_key('run end', run_id::text));
    PERFORM bqx._signal_run(run_id);
    was_open := bqx._cancel_open_jobs(run_id);
    PERFORM bqx._close_run(run_id);
    LOOP
        SELECT count(*) INTO working FROM bqx._holders('work', run_id);
        EXIT WHEN working = 0;
        IF clock_timestamp() > patience THEN
            RAISE WARNING '% session(s) of run % are still at work; each ends after the month it is at', working, run_id;
            EXIT;
        END IF;
        PERFORM pg_sleep(0.02);
        PERFORM bqx._signal_run(run_id);  -- those, too, that were only about to begin
    END LOOP;
    RETURN was_open;
END
$$;
COMMENT ON FUNCTION bqx.cancel(bigint) IS
    'Ends a run: its workers end, what is not done stays undone. Returns whether there was anything to end';

-- Waits for what is left of a run that has ended: a call or a worker on its way out.
CREATE FUNCTION bqx._await_run_end(run_id bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    patience CONSTANT timestamptz := clock_timestamp() + interval '5 seconds';
BEGIN
    WHILE (bqx._run_outcome(run_id)).open = 0 AND EXISTS (SELECT FROM bqx._holders('run', run_id))
          AND clock_timestamp() < patience LOOP
        PERFORM pg_sleep(0.02);
    END LOOP;
END
$$;

CREATE PROCEDURE bqx.resume(run_id bigint, workers int DEFAULT NULL, wait boolean DEFAULT true)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM bqx._require_top_level('resume'::pg_catalog.text);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    PERFORM bqx._check_workers(workers);
    PERFORM bqx._await_run_end(run_id);
    IF EXISTS (SELECT FROM bqx._holders('run'::text, run_id)) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('run %s goes on', run_id),
            HINT = format('SELECT * FROM bqx.progress WHERE run_id = %s;  shows how far it is, '
                          'SELECT bqx.cancel(%s);  ends it.', run_id, run_id);
    END IF;
    PERFORM bqx._enter_run(run_id);
    PERFORM bqx._reopen_jobs(run_id);
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL search_path TO pg_catalog, pg_temp;
    CALL bqx._work_off(run_id, workers, coalesce(wait, true));
END
$$;
COMMENT ON PROCEDURE bqx.resume(bigint, int, boolean) IS
    'Does the jobs of a run that it left undone: interrupted, cancelled or failed';
