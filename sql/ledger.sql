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
    worker int,
    error text,
    error_code text,
    error_hint text,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    UNIQUE (run_id, family, pair, month)
);
CREATE INDEX ON bqx.job_ledger (run_id, pair, month) WHERE state = 'pending';

-- What each month of a derived table was computed from.
CREATE TABLE bqx.month_ledger (
    family text NOT NULL,
    pair text NOT NULL,
    month date NOT NULL,
    input_fingerprint text NOT NULL,
    bars bigint NOT NULL,
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

-- Keys of the advisory locks that are held now in this database.
CREATE FUNCTION bqx._held_locks() RETURNS SETOF bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT (l.classid::bigint << 32) | l.objid::bigint FROM pg_locks AS l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
       AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
$$;

CREATE VIEW bqx.runs WITH (security_barrier) AS
SELECT r.run_id, r.called_by, r.arguments,
       CASE WHEN r.finished_at IS NULL THEN
                CASE WHEN bqx._lock_key('run', r.run_id::text) IN (SELECT bqx._held_locks()) THEN 'running' ELSE 'interrupted' END
            WHEN EXISTS (SELECT FROM bqx.job_ledger AS j WHERE j.run_id = r.run_id AND j.state = 'failed') THEN 'failed'
            WHEN EXISTS (SELECT FROM bqx.job_ledger AS j WHERE j.run_id = r.run_id AND j.state = 'cancelled') THEN 'cancelled'
            ELSE 'done' END AS state,
       r.started_at, r.finished_at
  FROM bqx.run_ledger AS r
 WHERE bqx._may_see_rows_of(r.called_by);
COMMENT ON VIEW bqx.runs IS 'Backfill runs: who called what, when, and how it ended';

CREATE VIEW bqx.jobs WITH (security_barrier) AS
SELECT j.run_id, j.family, j.pair, j.month,
       CASE WHEN j.state = 'pending' AND bqx._lock_key('job', j.job_id::text) IN (SELECT bqx._held_locks())
            THEN 'running' ELSE j.state END AS state,
       j.rows_written,
       round(extract(epoch FROM j.finished_at - j.started_at), 3)::double precision AS seconds,
       j.worker, j.error, j.started_at, j.finished_at
  FROM bqx.job_ledger AS j JOIN bqx.run_ledger AS r USING (run_id)
 WHERE bqx._may_see_rows_of(r.called_by);
COMMENT ON VIEW bqx.jobs IS 'One line per run, family, pair and month; a job is one transaction';

CREATE VIEW bqx.progress WITH (security_barrier) AS
SELECT t.run_id, t.family,
       CASE WHEN t.jobs_failed > 0 AND t.open = 0 THEN 'failed'
            WHEN t.open = 0 THEN CASE WHEN t.cancelled > 0 THEN 'cancelled' ELSE 'done' END
            ELSE t.run_state END AS state,
       t.jobs_total, t.jobs_done, t.jobs_failed,
       round(100.0 * (t.jobs_total - t.open) / t.jobs_total, 1)::double precision AS percent,
       t.rows_written,
       round(t.rows_written / nullif(extract(epoch FROM t.elapsed), 0))::double precision AS rows_per_second,
       t.started_at, t.elapsed,
       CASE WHEN t.open = 0 OR t.run_state <> 'running' THEN NULL
            ELSE t.elapsed * (t.open::double precision / nullif(t.jobs_total - t.open, 0)) END AS eta,
       rpad(repeat('#', (20 * (t.jobs_total - t.open) / t.jobs_total)::int), 20, '.') AS bar
  FROM (SELECT r.run_id, j.family, r.state AS run_state, r.started_at,
               count(*) AS jobs_total,
               count(*) FILTER (WHERE j.state = 'done') AS jobs_done,
               count(*) FILTER (WHERE j.state = 'failed') AS jobs_failed,
               count(*) FILTER (WHERE j.state = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE j.state IN ('pending', 'running')) AS open,
               coalesce(sum(j.rows_written), 0)::bigint AS rows_written,
               coalesce(r.finished_at, clock_timestamp()) - r.started_at AS elapsed
          FROM bqx.runs AS r JOIN bqx.jobs AS j USING (run_id)
         GROUP BY r.run_id, j.family, r.state, r.started_at, r.finished_at) AS t;
COMMENT ON VIEW bqx.progress IS 'How far each run is, per family';

GRANT SELECT ON bqx.runs, bqx.jobs, bqx.progress TO PUBLIC;

-- Writing to the ledger, for the role that calls.

CREATE FUNCTION bqx._check_own_run(run_id bigint) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM bqx.run_ledger AS r
                    WHERE r.run_id = $1 AND pg_has_role(bqx._calling_role(), r.called_by, 'MEMBER')) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'insufficient_privilege',
            MESSAGE = format('run %s is not one of role "%s"', run_id, bqx._calling_role()),
            HINT = 'SELECT * FROM bqx.runs; shows yours.';
    END IF;
END
$$;

-- Whether a month's rows are current is believed from who may write them, and from nobody else.
CREATE FUNCTION bqx._check_may_write_derived(family text, pair text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    derived regclass := to_regclass(format('bqx.%I', bqx._derived_name(family, pair)));
BEGIN
    IF derived IS NOT NULL AND NOT has_table_privilege(bqx._calling_role(), derived, 'INSERT') THEN
        RAISE EXCEPTION USING
            ERRCODE = 'insufficient_privilege',
            MESSAGE = format('role "%s" may not write %s', bqx._calling_role(), derived),
            HINT = format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %I;', derived, bqx._calling_role());
    END IF;
END
$$;

CREATE FUNCTION bqx._open_run(arguments jsonb) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO bqx.run_ledger (called_by, arguments) VALUES (bqx._calling_role(), arguments) RETURNING run_id
$$;

CREATE FUNCTION bqx._add_jobs(run_id bigint, pair text, families text[], months date[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    added bigint;
BEGIN
    PERFORM bqx._check_own_run($1);
    PERFORM bqx._check_may_write_derived(f, $2) FROM unnest(families) AS f;
    INSERT INTO bqx.job_ledger (run_id, family, pair, month)
    SELECT $1, f, $2, m FROM unnest(months) AS m, unnest(families) AS f ORDER BY m, f;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added;
END
$$;

-- The next open jobs of a run, one row per pair and month: what one claim takes.
CREATE FUNCTION bqx._open_units(run_id bigint, at_most int)
RETURNS TABLE (pair text, month date, families text[], job_ids bigint[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM bqx._check_own_run($1);
    RETURN QUERY
    SELECT j.pair, j.month, array_agg(j.family ORDER BY j.family), array_agg(j.job_id ORDER BY j.family)
      FROM bqx.job_ledger AS j WHERE j.run_id = $1 AND j.state = 'pending'
     GROUP BY j.pair, j.month ORDER BY j.pair, j.month LIMIT at_most;
END
$$;

-- The families of one pair and month that are still open, with their jobs.
CREATE FUNCTION bqx._open_jobs(run_id bigint, pair text, month date, OUT families text[], OUT job_ids bigint[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(j.family ORDER BY j.family), array_agg(j.job_id ORDER BY j.family)
      FROM bqx.job_ledger AS j
     WHERE j.run_id = $1 AND j.pair = $2 AND j.month = $3 AND j.state = 'pending'
$$;

CREATE FUNCTION bqx._run_force(run_id bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT (r.arguments ->> 'force')::boolean FROM bqx.run_ledger AS r WHERE r.run_id = $1 $$;

CREATE FUNCTION bqx._finish_job(
    run_id bigint, family text, pair text, month date, state text, worker int, started_at timestamp with time zone,
    bars bigint, rows_written bigint, input_fingerprint text, error text, error_code text, error_hint text
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM bqx._check_own_run($1);
    IF $5 = 'done' THEN
        PERFORM bqx._check_may_write_derived($2, $3);
    END IF;
    UPDATE bqx.job_ledger AS j
       SET state = $5, worker = $6, started_at = $7, finished_at = clock_timestamp(),
           bars = $8, rows_written = $9, error = $11, error_code = $12, error_hint = $13
     WHERE j.run_id = $1 AND j.family = $2 AND j.pair = $3 AND j.month = $4 AND j.state = 'pending';
    IF NOT FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('run %s has no open job %s %s %s', $1, $2, $3, to_char($4, 'YYYY-MM'));
    END IF;
    IF $5 = 'done' THEN
        INSERT INTO bqx.month_ledger AS m (family, pair, month, input_fingerprint, bars, run_id)
        VALUES ($2, $3, $4, $10, $8, $1)
        ON CONFLICT (family, pair, month) DO UPDATE
           SET input_fingerprint = excluded.input_fingerprint, bars = excluded.bars, run_id = excluded.run_id,
               computed_at = CASE WHEN m.input_fingerprint = excluded.input_fingerprint
                                  THEN m.computed_at ELSE excluded.computed_at END;
    END IF;
END
$$;

-- Jobs of a run that ended after an instant, with how many ended up to each and how many there are.
CREATE FUNCTION bqx._finished_jobs(run_id bigint, since timestamp with time zone)
RETURNS TABLE (nth bigint, total bigint, family text, pair text, month date, state text, rows_written bigint,
               seconds numeric, error text, finished_at timestamp with time zone)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    told bigint;
    planned bigint;
BEGIN
    PERFORM bqx._check_own_run($1);
    SELECT count(*), count(*) FILTER (WHERE j.finished_at <= $2) INTO planned, told
      FROM bqx.job_ledger AS j WHERE j.run_id = $1;
    RETURN QUERY
    SELECT told + row_number() OVER (ORDER BY j.finished_at, j.job_id), planned, j.family, j.pair, j.month, j.state,
           j.rows_written, extract(epoch FROM j.finished_at - j.started_at), j.error, j.finished_at
      FROM bqx.job_ledger AS j WHERE j.run_id = $1 AND j.finished_at > $2;
END
$$;

-- The SQLSTATE and the hint that all failed jobs of a run share; NULL where they differ.
CREATE FUNCTION bqx._common_error(run_id bigint, OUT error_code text, OUT error_hint text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN count(DISTINCT j.error_code) = 1 THEN min(j.error_code) END,
           CASE WHEN count(DISTINCT coalesce(j.error_hint, '')) = 1 THEN nullif(min(j.error_hint), '') END
      FROM bqx.job_ledger AS j WHERE j.run_id = $1 AND j.state = 'failed'
$$;

-- Gives up the open jobs of a run that can't go on.
CREATE FUNCTION bqx._cancel_open_jobs(run_id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_own_run($1);
    UPDATE bqx.job_ledger AS j SET state = 'cancelled' WHERE j.run_id = $1 AND j.state = 'pending';
END
$$;

CREATE FUNCTION bqx._close_run(run_id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM bqx._check_own_run($1);
    UPDATE bqx.run_ledger AS r SET finished_at = clock_timestamp()
     WHERE r.run_id = $1 AND r.finished_at IS NULL
       AND NOT EXISTS (SELECT FROM bqx.job_ledger AS j WHERE j.run_id = $1 AND j.state = 'pending');
END
$$;

-- What a month was computed from; NULLs where it never was.
CREATE FUNCTION bqx._recorded_month(family text, pair text, month date, OUT input_fingerprint text, OUT bars bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.input_fingerprint, m.bars FROM bqx.month_ledger AS m
     WHERE m.family = $1 AND m.pair = $2 AND m.month = $3
$$;

-- Months of a pair that were written and had bars.
CREATE FUNCTION bqx._recorded_months(families text[], pair text) RETURNS SETOF date
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT DISTINCT m.month FROM bqx.month_ledger AS m
     WHERE m.family = ANY ($1) AND m.pair = $2 AND m.bars > 0
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
