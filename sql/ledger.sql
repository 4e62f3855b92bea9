-- The ledger: what was asked for (runs), what was done (jobs), and what the derived tables hold (months).
-- "running" is stored nowhere: it is an advisory lock of the transaction that works, gone with it.
-- No foreign keys between these tables: a parallel pg_restore loads them in any order.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

CREATE TABLE bqx.run_ledger (
    run_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    called_by name NOT NULL,
    arguments jsonb NOT NULL,
    started_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamp with time zone
);

CREATE TABLE bqx.job_ledger (
    job_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id bigint NOT NULL,
    family text NOT NULL,
    pair text NOT NULL,
    month date NOT NULL,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'failed', 'cancelled')),
    bars bigint,
    rows_written bigint,
    rows_removed bigint,
    worker int,
    error text,
    error_code text,
    error_hint text,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    UNIQUE (run_id, family, pair, month)
);
CREATE INDEX ON bqx.job_ledger (run_id, pair, month) WHERE state = 'pending';
CREATE INDEX ON bqx.job_ledger (run_id, state) WHERE state IN ('failed', 'cancelled');
CREATE INDEX ON bqx.job_ledger (finished_at);

-- What each month of a derived table was computed from. Without a fingerprint, its rows have followed the bars, change by
-- change, since the month was written. `followed_as` is what the month's bars and rows were kept in when all bars were read
-- last (_followed_as): while that is the same, every later change is known. `seen` is what could be seen then.
CREATE TABLE bqx.month_ledger (
    family text NOT NULL,
    pair text NOT NULL,
    month date NOT NULL,
    input_fingerprint text,
    bars bigint NOT NULL,
    followed_as text,
    seen pg_snapshot,
    run_id bigint,
    computed_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (family, pair, month)
);

SELECT pg_catalog.pg_extension_config_dump('bqx.run_ledger', '');
SELECT pg_catalog.pg_extension_config_dump('bqx.job_ledger', '');
SELECT pg_catalog.pg_extension_config_dump('bqx.month_ledger', '');
SELECT pg_catalog.pg_extension_config_dump(
    pg_catalog.pg_get_serial_sequence('bqx.run_ledger', 'run_id')::pg_catalog.regclass, '');
SELECT pg_catalog.pg_extension_config_dump(
    pg_catalog.pg_get_serial_sequence('bqx.job_ledger', 'job_id')::pg_catalog.regclass, '');

-- Advisory locks of ours are told from others' by a hash over a name.
CREATE FUNCTION bqx._lock_key(kind text, object text) RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN pg_catalog.hashtextextended('bqx ' || kind || ' ' || object, 0);

-- Advisory locks that are held now in this database, by key. Ours are:
--   run      shared, by the call that waits for a run, and its workers: for as long as they are, the run goes on
--   work     shared, by sessions that do a run's jobs
--   run end  by who ends a run: its call, or cancel()
--   month    by who works on a pair's month
--   pair     exclusive, by who computes rows because bars changed, or makes partitions of coming months; shared, by who
--            works on a month of the pair
--   m1       by who loads bars of the pair, or makes partitions of its M1; before the pair's lock
--   job      by who does this job
-- Anyone can take an advisory lock: it says something about a run only where the session's role may act for the run's
-- (_may_act_for).
CREATE FUNCTION bqx._lock_holders() RETURNS TABLE (pid int, role_id oid, key bigint)
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_stat_clear_snapshot();  -- else the sessions are those that the transaction saw first
    SELECT l.pid, a.usesysid, (l.classid::bigint << 32) | l.objid::bigint
      FROM pg_locks AS l JOIN pg_stat_get_activity(NULL) AS a USING (pid)
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
       AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
$$;

-- Whether a role may do what the role of a run may: its members; for one that is gone, superusers.
CREATE FUNCTION bqx._may_act_for(role_id oid, called_by name) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN coalesce((SELECT pg_has_role(role_id, r.oid, 'MEMBER') FROM pg_roles AS r WHERE r.rolname = called_by),
                    (SELECT r.rolsuper FROM pg_roles AS r WHERE r.oid = role_id), false);
END
$$;

-- Process ids of the sessions, other than this one, that hold a lock of a run.
CREATE FUNCTION bqx._holders(kind text, run_id bigint) RETURNS SETOF int
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT h.pid FROM bqx._lock_holders() AS h, bqx.run_ledger AS r
     WHERE r.run_id = $2 AND h.key = bqx._lock_key(kind, r.run_id::text) AND h.pid <> pg_backend_pid()
       AND bqx._may_act_for(h.role_id, r.called_by)
$$;

-- Writing to the ledger, for the role that calls: see _caller().

-- 22023 for a run that isn't, 42501 for another's.
CREATE FUNCTION bqx._check_own_run(run_id bigint, role_name name) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner name := (SELECT r.called_by FROM bqx.run_ledger AS r WHERE r.run_id = $1);
BEGIN
    IF owner IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('there is no run %s', coalesce(run_id::text, 'NULL')),
            HINT = 'SELECT * FROM bqx.runs;  shows yours.';
    END IF;
    IF NOT bqx._may_act_for((SELECT r.oid FROM pg_roles AS r WHERE r.rolname = role_name), owner) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'insufficient_privilege',
            MESSAGE = format('run %s is not one of role "%s"', run_id, role_name),
            HINT = 'SELECT * FROM bqx.runs;  shows yours.';
    END IF;
END
$$;

-- How long finished runs and their jobs are kept. Months' fingerprints stay for as long as the tables.
CREATE FUNCTION bqx._forget_old_runs() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kept interval := make_interval(mins => bqx._ledger_retention_minutes());  -- NULL: for ever
    old bigint[];
BEGIN
    old := ARRAY(SELECT r.run_id FROM bqx.run_ledger AS r
                  WHERE r.started_at < clock_timestamp() - kept
                    AND bqx._lock_key('run', r.run_id::text) NOT IN (SELECT h.key FROM bqx._lock_holders() AS h)
                    FOR UPDATE SKIP LOCKED);
    DELETE FROM bqx.job_ledger AS j WHERE j.run_id = ANY (old);
    DELETE FROM bqx.run_ledger AS r WHERE r.run_id = ANY (old);
END
$$;

-- Opening a run is the occasion to forget old ones.
CREATE FUNCTION bqx._open_run(arguments jsonb, caller bigint DEFAULT bqx._caller()) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    new_run bigint;
BEGIN
    PERFORM bqx._forget_old_runs();
    INSERT INTO bqx.run_ledger AS r (called_by, arguments) VALUES (bqx._role_of($2), $1) RETURNING r.run_id INTO new_run;
    RETURN new_run;
END
$$;

CREATE FUNCTION bqx._add_jobs(
    run_id bigint, pair text, families text[], months date[], caller bigint DEFAULT bqx._caller()) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role_name name := bqx._role_of($5);
    added bigint;
BEGIN
    PERFORM bqx._check_own_run($1, role_name);
    PERFORM bqx._check_may_write(role_name, bqx._derived_name(f, $2)) FROM unnest(families) AS f;
    INSERT INTO bqx.job_ledger (run_id, family, pair, month)
    SELECT $1, f, $2, m FROM unnest(months) AS m, unnest(families) AS f ORDER BY m, f;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added;
END
$$;

-- The next open jobs of a run, one row per pair and month: what one claim takes.
CREATE FUNCTION bqx._open_units(run_id bigint, at_most int, caller bigint DEFAULT bqx._caller())
RETURNS TABLE (pair text, month date)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_own_run($1, bqx._role_of($3));
    RETURN QUERY
    SELECT DISTINCT j.pair, j.month
      FROM bqx.job_ledger AS j WHERE j.run_id = $1 AND j.state = 'pending'
     ORDER BY j.pair, j.month LIMIT at_most;
END
$$;

-- The families of one pair and month that are still open, with their jobs.
CREATE FUNCTION bqx._open_jobs(
    run_id bigint, pair text, month date, caller bigint DEFAULT bqx._caller(), OUT families text[], OUT job_ids bigint[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_own_run($1, bqx._role_of($4));
    SELECT array_agg(j.family ORDER BY j.family), array_agg(j.job_id ORDER BY j.family) INTO families, job_ids
      FROM bqx.job_ledger AS j
     WHERE j.run_id = $1 AND j.pair = $2 AND j.month = $3 AND j.state = 'pending';
END
$$;

CREATE FUNCTION bqx._run_force(run_id bigint, caller bigint DEFAULT bqx._caller()) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_own_run($1, bqx._role_of($2));
    RETURN (SELECT (r.arguments ->> 'force')::boolean FROM bqx.run_ledger AS r WHERE r.run_id = $1);
END
$$;

CREATE FUNCTION bqx._finish_job(
    run_id bigint, family text, pair text, month date, state text, worker int, started_at timestamp with time zone,
    bars bigint, rows_written bigint, rows_removed bigint, input_fingerprint text, followed_as text,
    seen pg_snapshot, error text, error_code text, error_hint text, caller bigint DEFAULT bqx._caller()
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    role_name name := bqx._role_of($17);
BEGIN
    PERFORM bqx._check_own_run($1, role_name);
    IF $5 = 'done' THEN
        PERFORM bqx._check_may_write(role_name, bqx._derived_name($2, $3));
    END IF;
    UPDATE bqx.job_ledger AS j
       SET state = $5, worker = $6, started_at = $7, finished_at = clock_timestamp(),
           bars = $8, rows_written = $9, rows_removed = $10,
           error = $14, error_code = $15, error_hint = $16
     WHERE j.run_id = $1 AND j.family = $2 AND j.pair = $3 AND j.month = $4 AND j.state = 'pending';
    IF NOT FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('run %s has no open job %s %s %s', $1, $2, $3, to_char($4, 'YYYY-MM'));
    END IF;
    IF $5 = 'done' THEN
        INSERT INTO bqx.month_ledger AS m (family, pair, month, input_fingerprint, bars, followed_as, seen, run_id)
        VALUES ($2, $3, $4, $11, $8, $12, $13, $1)
        ON CONFLICT (family, pair, month) DO UPDATE
           SET input_fingerprint = excluded.input_fingerprint, bars = excluded.bars,
               followed_as = excluded.followed_as, seen = excluded.seen, run_id = excluded.run_id,
               computed_at = CASE WHEN m.input_fingerprint = excluded.input_fingerprint
                                  THEN m.computed_at ELSE excluded.computed_at END;
    END IF;
END
$$;

-- Jobs of a run that ended at or after an instant and are not among those told, in the order of their ends.
CREATE FUNCTION bqx._finished_jobs(
    run_id bigint, since timestamp with time zone, told bigint[], caller bigint DEFAULT bqx._caller())
RETURNS TABLE (job_id bigint, family text, pair text, month date, state text, rows_written bigint, rows_removed bigint,
               seconds numeric, error text, finished_at timestamp with time zone)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM bqx._check_own_run($1, bqx._role_of($4));
    RETURN QUERY
    SELECT j.job_id, j.family, j.pair, j.month, j.state, j.rows_written, j.rows_removed,
           extract(epoch FROM j.finished_at - j.started_at), j.error, j.finished_at
      FROM bqx.job_ledger AS j
     WHERE j.run_id = $1 AND j.finished_at >= $2 AND j.job_id <> ALL ($3)
     ORDER BY j.finished_at, j.job_id;
END
$$;

-- How the jobs of a run stand, and the SQLSTATE and the hint that all failed ones share. Where they don't, `failures` has
-- the hint of each.
CREATE FUNCTION bqx._run_outcome(run_id bigint, caller bigint DEFAULT bqx._caller(),
    OUT jobs bigint, OUT done bigint, OUT open bigint, OUT cancelled bigint, OUT rows_written bigint,
    OUT failures text[], OUT common_code text, OUT common_hint text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_own_run($1, bqx._role_of($2));
    SELECT CASE WHEN count(DISTINCT j.error_code) = 1 THEN min(j.error_code) END,
           CASE WHEN count(DISTINCT coalesce(j.error_hint, '')) = 1 THEN nullif(min(j.error_hint), '') END
      INTO common_code, common_hint
      FROM bqx.job_ledger AS j WHERE j.run_id = $1 AND j.state = 'failed';
    SELECT count(*), count(*) FILTER (WHERE j.state = 'done'), count(*) FILTER (WHERE j.state = 'pending'),
           count(*) FILTER (WHERE j.state = 'cancelled'), coalesce(sum(j.rows_written), 0),
           array_agg(format('%s %s %s: %s', j.family, j.pair, to_char(j.month, 'YYYY-MM'), j.error)
                         || CASE WHEN common_hint IS NULL AND j.error_hint <> '' THEN '  HINT: ' || j.error_hint ELSE '' END
                     ORDER BY j.pair, j.month, j.family) FILTER (WHERE j.state = 'failed')
      INTO jobs, done, open, cancelled, rows_written, failures
      FROM bqx.job_ledger AS j WHERE j.run_id = $1;
END
$$;

-- Gives up the open jobs of a run; true if there were any.
CREATE FUNCTION bqx._cancel_open_jobs(run_id bigint, caller bigint DEFAULT bqx._caller()) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_own_run($1, bqx._role_of($2));
    UPDATE bqx.job_ledger AS j SET state = 'cancelled' WHERE j.run_id = $1 AND j.state = 'pending';
    RETURN FOUND;
END
$$;

-- Opens again what a run left undone, failed or cancelled; returns how many jobs are open now.
CREATE FUNCTION bqx._reopen_jobs(run_id bigint, caller bigint DEFAULT bqx._caller()) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_own_run($1, bqx._role_of($2));
    UPDATE bqx.job_ledger AS j
       SET state = 'pending', worker = NULL, started_at = NULL, finished_at = NULL, bars = NULL, rows_written = NULL,
           rows_removed = NULL,
           error = NULL, error_code = NULL, error_hint = NULL
     WHERE j.run_id = $1 AND j.state IN ('failed', 'cancelled');
    UPDATE bqx.run_ledger AS r SET finished_at = NULL
     WHERE r.run_id = $1 AND EXISTS (SELECT FROM bqx.job_ledger AS j WHERE j.run_id = $1 AND j.state = 'pending');
    RETURN (SELECT count(*) FROM bqx.job_ledger AS j WHERE j.run_id = $1 AND j.state = 'pending');
END
$$;

CREATE FUNCTION bqx._close_run(run_id bigint, caller bigint DEFAULT bqx._caller()) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_own_run($1, bqx._role_of($2));
    UPDATE bqx.run_ledger AS r SET finished_at = clock_timestamp()
     WHERE r.run_id = $1 AND r.finished_at IS NULL
       AND NOT EXISTS (SELECT FROM bqx.job_ledger AS j WHERE j.run_id = $1 AND j.state = 'pending');
END
$$;

-- Whether a role may know what a derived table's months were computed from: if it may read the table.
CREATE FUNCTION bqx._may_read_derived(role_name name, family text, pair text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(has_any_column_privilege(
        role_name, to_regclass(format('bqx.%I', bqx._derived_name(family, pair))), 'SELECT'), false)
$$;

-- What a month was computed from; NULLs where it never was.
CREATE FUNCTION bqx._recorded_month(family text, pair text, month date, caller bigint DEFAULT bqx._caller(),
    OUT input_fingerprint text, OUT bars bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.input_fingerprint, m.bars FROM bqx.month_ledger AS m
     WHERE m.family = $1 AND m.pair = $2 AND m.month = $3 AND bqx._may_read_derived(bqx._role_of($4)::name, $1, $2)
$$;

-- Months of a pair that were written and had bars.
CREATE FUNCTION bqx._recorded_months(families text[], pair text, caller bigint DEFAULT bqx._caller()) RETURNS SETOF date
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT DISTINCT m.month FROM bqx.month_ledger AS m
     WHERE m.family = ANY ($1) AND m.pair = $2 AND m.bars > 0
       AND bqx._may_read_derived(bqx._role_of($3)::name, m.family, m.pair)
$$;

-- Notes that rows of these months, and some of the months that lost bars, have followed changes of their bars. True if nothing
-- was recorded of one of the months before.
CREATE FUNCTION bqx._note_followed(
    pair text, families text[], months date[], first_removed date, last_removed date, caller bigint DEFAULT bqx._caller())
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    role_name name := bqx._role_of($6);
    has_new_months boolean := false;
BEGIN
    PERFORM bqx._check_may_write(role_name, bqx._derived_name(f, $1)) FROM unnest(families) AS f;
    WITH noted AS (
        INSERT INTO bqx.month_ledger AS m (family, pair, month, bars)
        SELECT f, $1, d, 1 FROM unnest($2) AS f, unnest($3) AS d
            ON CONFLICT (family, pair, month) DO UPDATE SET input_fingerprint = NULL, bars = greatest(m.bars, 1)
                WHERE m.input_fingerprint IS NOT NULL OR m.bars < 1
         RETURNING m.xmax = 0 AS is_new)
    SELECT coalesce(bool_or(n.is_new), false) INTO has_new_months FROM noted AS n;
    IF $4 IS NOT NULL THEN
        UPDATE bqx.month_ledger AS m SET input_fingerprint = NULL
         WHERE m.family = ANY ($2) AND m.pair = $1 AND m.month BETWEEN $4 AND $5 AND m.input_fingerprint IS NOT NULL;
    END IF;
    RETURN has_new_months;
END
$$;

-- Records what a month is kept in, where nothing was recorded of it before.
CREATE FUNCTION bqx._record_followed_as(
    family text, pair text, month date, followed_as text, caller bigint DEFAULT bqx._caller()) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_may_write(bqx._role_of($5), bqx._derived_name($1, $2));
    UPDATE bqx.month_ledger AS m SET followed_as = $4
     WHERE m.family = $1 AND m.pair = $2 AND m.month = $3 AND m.followed_as IS NULL AND m.input_fingerprint IS NULL;
END
$$;

-- What is recorded of a pair's months.
CREATE FUNCTION bqx._recorded_states(pair text, caller bigint DEFAULT bqx._caller())
RETURNS TABLE (family text, month date, bars bigint, followed_as text, seen pg_snapshot)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.family, m.month, m.bars, m.followed_as, m.seen FROM bqx.month_ledger AS m
     WHERE m.pair = $1 AND bqx._may_read_derived(bqx._role_of($2)::name, m.family, m.pair)
$$;

-- Forgets a table's months after it was dropped (and only then).
CREATE FUNCTION bqx._forget_months(family text, pair text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM bqx.month_ledger AS m
     WHERE m.family = $1 AND m.pair = $2
       AND to_regclass(format('bqx.%I', bqx._derived_name($1, $2))) IS NULL
$$;

SET LOCAL search_path TO bqx, pg_temp;
