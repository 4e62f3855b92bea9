-- Views for people who watch. Each shows a role what it may see: runs of its own and of roles it is a member of,
-- tables that it may read. The ledger's owner, superusers and those who may read all statistics see every run.
--
-- What goes on (locks, sessions) is read first and what is recorded after, in a later snapshot: what ends in between is
-- found in the ledger. Within one query it would be the other way round, and such jobs would be found nowhere; that is why
-- the views call functions.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

CREATE FUNCTION bqx._may_see_runs_of(role_name name, called_by name) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_has_role(role_name, 'pg_read_all_stats', 'USAGE')
        OR pg_has_role(role_name, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = 'bqx.run_ledger'::regclass), 'USAGE')
        -- a role that is gone is nobody's
        OR EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = called_by AND pg_has_role(role_name, r.oid, 'MEMBER'))
$$;

CREATE FUNCTION bqx._runs_now(caller bigint DEFAULT bqx._caller())
RETURNS TABLE (run_id bigint, called_by name, arguments jsonb, state text,
               started_at timestamp with time zone, finished_at timestamp with time zone)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    holders oid[];  -- roles of sessions that hold a lock, each with
    held bigint[];  -- its key
BEGIN
    SELECT array_agg(h.role_id), array_agg(h.key) INTO holders, held FROM bqx._lock_holders() AS h;
    RETURN QUERY
    SELECT r.run_id, r.called_by, r.arguments,
           CASE WHEN r.finished_at IS NULL THEN
                    CASE WHEN pg_is_in_recovery() THEN 'unknown'  -- a standby doesn't have the primary's locks
                         WHEN EXISTS (SELECT FROM unnest(holders, held) AS h (role_id, key)
                                       WHERE h.key = bqx._lock_key('run', r.run_id::text)
                                         AND bqx._may_act_for(h.role_id, r.called_by)) THEN 'running'
                         ELSE 'interrupted' END
                WHEN EXISTS (SELECT FROM bqx.job_ledger AS j WHERE j.run_id = r.run_id AND j.state = 'failed') THEN 'failed'
                WHEN EXISTS (SELECT FROM bqx.job_ledger AS j WHERE j.run_id = r.run_id AND j.state = 'cancelled')
                    THEN 'cancelled'
                ELSE 'done' END,
           r.started_at, r.finished_at
      FROM bqx.run_ledger AS r
     WHERE r.called_by IN (SELECT u.called_by FROM (SELECT DISTINCT l.called_by FROM bqx.run_ledger AS l) AS u
                            WHERE bqx._may_see_runs_of(bqx._role_of(caller)::name, u.called_by))
     ORDER BY r.run_id;
END
$$;

-- How far sessions say that their jobs are. They say so in pg_stat_activity, as autovacuum does: seen before they commit, and
-- by whom PostgreSQL lets see a session's query. See src/live_progress.rs. It is text, which stays there after an error and
-- which anybody can send as a query: believed is who holds the job's lock (_jobs_now).
CREATE TYPE bqx._live_job AS (
    pid int, job_id bigint, worker int, bars_done bigint, bars bigint, rows_written bigint,
    started_at timestamp with time zone);

CREATE FUNCTION bqx._live_jobs() RETURNS SETOF bqx._live_job
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.pid, job[1]::bigint, substring(a.query FROM ' worker (\d{1,9}):')::int, job[2]::bigint, job[3]::bigint,
           CASE job[4] WHEN 'written' THEN job[2]::bigint END, a.xact_start
      FROM pg_stat_get_activity(NULL) AS a,
           regexp_matches(a.query, 'job (\d{1,18}) [a-z]+(?:: (\d{1,18}) of (\d{1,18}) rows (written|compared))?', 'g') AS job
     WHERE a.query LIKE 'bqx run %' AND a.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
$$;

-- The jobs of a run as they are at this moment; `work` is how much of the job is done, from 0 to 1. None, of a run that isn't
-- the caller's to see.
CREATE FUNCTION bqx._jobs_now(run_id bigint, caller bigint DEFAULT bqx._caller())
RETURNS TABLE (family text, pair text, month date, state text, work double precision, rows_written bigint,
               started_at timestamp with time zone, finished_at timestamp with time zone, worker int, error text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    run record;
    pids int[];  -- sessions that hold a lock, each with
    held bigint[];  -- its key
    live bqx._live_job[];
BEGIN
    SELECT r.called_by, r.finished_at INTO run FROM bqx.run_ledger AS r WHERE r.run_id = $1;
    IF NOT FOUND OR bqx._may_see_runs_of(bqx._role_of($2)::name, run.called_by) IS NOT TRUE THEN
        RETURN;
    END IF;
    IF run.finished_at IS NULL THEN
        SELECT array_agg(h.pid), array_agg(h.key) INTO pids, held
          FROM bqx._lock_holders() AS h WHERE bqx._may_act_for(h.role_id, run.called_by);
        live := ARRAY(SELECT l FROM bqx._live_jobs() AS l JOIN unnest(pids, held) AS h (pid, key)
                          ON h.pid = l.pid AND h.key = bqx._lock_key('job', l.job_id::text));
    END IF;
    RETURN QUERY
    SELECT j.family, j.pair, j.month,
           CASE WHEN j.state = 'pending' AND bqx._lock_key('job', j.job_id::text) = ANY (held) THEN 'running' ELSE j.state END,
           CASE WHEN j.state IN ('done', 'failed') THEN 1
                ELSE least(coalesce(l.bars_done::double precision / nullif(l.bars, 0), 0), 1) END,
           coalesce(j.rows_written, l.rows_written), coalesce(j.started_at, l.started_at), j.finished_at,
           coalesce(j.worker, l.worker), j.error
      FROM bqx.job_ledger AS j
      LEFT JOIN unnest(live) AS l ON l.job_id = j.job_id AND j.state = 'pending'
     WHERE j.run_id = $1
     ORDER BY j.pair, j.month, j.family;
END
$$;

CREATE VIEW bqx.runs AS
SELECT r.run_id, r.called_by, r.arguments, r.state, r.started_at, r.finished_at FROM bqx._runs_now() AS r;
COMMENT ON VIEW bqx.runs IS 'Backfill runs: who called what, when, and how it ended';

CREATE VIEW bqx.jobs WITH (security_barrier) AS
SELECT r.run_id, j.family, j.pair, j.month, j.state, j.rows_written,
       round(extract(epoch FROM coalesce(j.finished_at, clock_timestamp()) - j.started_at), 3)::double precision AS seconds,
       j.worker, j.error, j.started_at, j.finished_at
  FROM bqx.run_ledger AS r CROSS JOIN LATERAL bqx._jobs_now(r.run_id) AS j;
COMMENT ON VIEW bqx.jobs IS 'One line per run, family, pair and month; a job is one transaction';

-- Which part of the time from `began` to `ended` was after an instant; NULL for what has not begun.
CREATE FUNCTION bqx._share_since(
    instant timestamp with time zone, began timestamp with time zone, ended timestamp with time zone)
RETURNS double precision
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN began >= instant THEN 1 WHEN ended <= instant THEN 0
            ELSE extract(epoch FROM ended - instant) / extract(epoch FROM ended - began) END;

-- The recent rate counts what was done in the last minute; of a job that began before, a part in proportion to its time.
CREATE VIEW bqx.progress AS
SELECT r.run_id, t.family,
       CASE WHEN t.open > 0 THEN r.state WHEN t.jobs_failed > 0 THEN 'failed' WHEN t.cancelled > 0 THEN 'cancelled'
            ELSE 'done' END AS state,
       t.jobs_total, t.jobs_done, t.jobs_failed,
       round((100 * t.work / t.jobs_total)::numeric, 1)::double precision AS percent,
       t.rows_written,
       round(CASE WHEN t.open > 0 AND r.state = 'running' THEN t.recent_rows / nullif(t.recent_seconds, 0)
                  ELSE t.rows_written / nullif(extract(epoch FROM e.elapsed), 0) END)::double precision AS rows_per_second,
       r.started_at, e.elapsed,
       CASE WHEN t.open > 0 AND r.state = 'running' THEN
            make_interval(secs => ceil((t.jobs_total - t.work) * t.recent_seconds / nullif(t.recent_work, 0))) END AS eta,
       rpad(repeat('#', floor(20 * t.work / t.jobs_total)::int), 20, '.') AS bar
  FROM bqx.runs AS r
 CROSS JOIN LATERAL (SELECT clock_timestamp() AS at OFFSET 0) AS now
 CROSS JOIN LATERAL (
        SELECT j.family, count(*) AS jobs_total,
               count(*) FILTER (WHERE j.state = 'done') AS jobs_done,
               count(*) FILTER (WHERE j.state = 'failed') AS jobs_failed,
               count(*) FILTER (WHERE j.state = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE j.state IN ('pending', 'running')) AS open,
               sum(j.work) AS work,
               coalesce(sum(j.rows_written), 0)::bigint AS rows_written,
               max(j.finished_at) AS last_end,
               sum(j.work * recent.share) AS recent_work,
               coalesce(sum(j.rows_written * recent.share), 0) AS recent_rows,
               least(60, extract(epoch FROM now.at - min(j.started_at) FILTER (WHERE recent.share > 0))) AS recent_seconds
          FROM bqx._jobs_now(r.run_id) AS j
         CROSS JOIN LATERAL bqx._share_since(now.at - interval '1 minute', j.started_at,
                                             coalesce(j.finished_at, now.at)) AS recent (share)
         GROUP BY j.family) AS t
 CROSS JOIN LATERAL (
        SELECT coalesce(r.finished_at, CASE r.state WHEN 'running' THEN now.at ELSE t.last_end END, r.started_at)
               - r.started_at AS elapsed) AS e
 ORDER BY r.run_id, t.family;
COMMENT ON VIEW bqx.progress IS 'How far each run is at this moment, per family; rate and eta are those of the last minute';

CREATE VIEW bqx.pair_progress WITH (security_barrier) AS
WITH latest AS MATERIALIZED (
    SELECT j.family, j.pair, max(j.run_id) AS run_id
      FROM bqx.runs AS r JOIN bqx.job_ledger AS j USING (run_id) GROUP BY j.family, j.pair
)
SELECT t.family, t.pair, t.months_done, t.months_total, t.rows_written,
       round((100 * coalesce(t.work, 0) / t.months_total)::numeric, 1)::double precision AS percent,
       CASE WHEN t.months_failed > 0 THEN 'failed'
            WHEN t.months_done = t.months_total THEN 'complete'
            WHEN t.months_running > 0 OR (t.months_done > 0 AND r.state = 'running') THEN 'in progress'
            ELSE 'pending' END AS status
  FROM bqx.runs AS r
 CROSS JOIN LATERAL (
        SELECT j.family, j.pair,
               count(*) AS months_total,
               count(*) FILTER (WHERE j.state = 'done') AS months_done,
               count(*) FILTER (WHERE j.state = 'failed') AS months_failed,
               count(*) FILTER (WHERE j.state = 'running') AS months_running,
               sum(j.work) FILTER (WHERE j.state <> 'failed') AS work,
               coalesce(sum(j.rows_written), 0)::bigint AS rows_written
          FROM bqx._jobs_now(r.run_id) AS j
         GROUP BY j.family, j.pair) AS t
 WHERE r.run_id IN (SELECT l.run_id FROM latest AS l)
   AND EXISTS (SELECT FROM latest AS l WHERE (l.family, l.pair, l.run_id) = (t.family, t.pair, r.run_id))
 ORDER BY t.family, t.pair;
COMMENT ON VIEW bqx.pair_progress IS 'How far each derived table has come in the latest run that included it';

-- A job in one line: [W02] cadchf 2024-07 bqx 31,663 rows 0.21 s 18.5 %. W00 is the calling session.
CREATE FUNCTION bqx._job_line(
    worker int, pair text, month date, family text, state text, rows_written bigint, seconds double precision,
    percent numeric, error text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT concat_ws(' ', format('[W%s]', coalesce(to_char(worker, 'FM9900'), '--')),
        pair, to_char(month, 'YYYY-MM'), family,
        CASE state WHEN 'done' THEN to_char(rows_written, 'FM999,999,999,990') || ' rows' ELSE state END,
        to_char(seconds, 'FM999990.00') || ' s', to_char(percent, 'FM990.0') || ' %',
        CASE state WHEN 'failed' THEN left(replace(error, E'\n', ' '), 120) END)
$$;

CREATE VIEW bqx.recent WITH (security_barrier) AS
SELECT bqx._job_line(t.worker, t.pair, t.month, t.family, t.state, t.rows_written,
                     extract(epoch FROM t.finished_at - t.started_at)::double precision, t.percent, t.error) AS line
  FROM (SELECT j.*,
               -- how far its run had come then
               (SELECT 100.0 * count(*) FILTER (WHERE (s.finished_at, s.pair, s.month, s.family)
                                                   <= (j.finished_at, j.pair, j.month, j.family)) / count(*)
                  FROM bqx.job_ledger AS s WHERE s.run_id = j.run_id) AS percent
          FROM bqx.job_ledger AS j
         WHERE j.finished_at IS NOT NULL AND j.run_id IN (SELECT r.run_id FROM bqx.runs AS r)
         ORDER BY j.finished_at DESC, j.pair DESC, j.month DESC, j.family DESC LIMIT 20) AS t
 ORDER BY t.finished_at, t.pair, t.month, t.family;
COMMENT ON VIEW bqx.recent IS 'The last 20 jobs that ended, as lines of a log: the newest is the last';

CREATE VIEW bqx.storage WITH (security_barrier) AS
SELECT f.family, p.pair,
       (SELECT count(*) FROM pg_catalog.pg_partition_tree(c.oid) AS t WHERE t.isleaf AND t.level > 0) AS partitions,
       (SELECT coalesce(sum(m.bars), 0)::bigint FROM bqx.month_ledger AS m
         WHERE m.family = f.family AND m.pair = p.pair) AS rows,
       (SELECT sum(pg_catalog.pg_total_relation_size(leaf))::bigint
          FROM pg_catalog.unnest(bqx._leaves(c.oid)) AS leaf) AS bytes
  FROM bqx.pairs AS p
 CROSS JOIN (VALUES ('bqx'), ('reg')) AS f (family)
  JOIN pg_catalog.pg_class AS c ON c.relnamespace = 'bqx'::pg_catalog.regnamespace
                               AND c.relname = bqx._derived_name(f.family, p.pair) AND c.relkind IN ('r', 'p')
 WHERE pg_catalog.has_table_privilege(c.oid, 'SELECT');
COMMENT ON VIEW bqx.storage IS 'Partitions, rows (as the ledger has them) and bytes (with indexes) of derived tables';

-- The latest run that the current user may see. Each section's label stands before its first line.
CREATE VIEW bqx.dashboard WITH (security_barrier) AS
WITH latest AS (
    SELECT r.* FROM bqx.runs AS r ORDER BY r.run_id DESC LIMIT 1
), jobs AS MATERIALIZED (
    SELECT j.*, format('%s %s %s', j.pair, to_char(j.month, 'YYYY-MM'), j.family) AS title,
           extract(epoch FROM coalesce(j.finished_at, clock_timestamp()) - j.started_at) AS seconds
      FROM latest AS r CROSS JOIN LATERAL bqx._jobs_now(r.run_id) AS j
), lines (section, label, nth, line) AS (
    SELECT 0, 'bqx', 1, 'no run yet, or none of yours: CALL bqx.backfill();' WHERE NOT EXISTS (SELECT FROM latest)
    UNION ALL
    SELECT 1, 'run', 1, format('%s %s   by %s   started %s UTC   %s', r.run_id, r.state, r.called_by,
                               to_char(r.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
                               to_char(coalesce(r.finished_at, clock_timestamp()) - r.started_at, 'HH24:MI:SS'))
      FROM latest AS r
    UNION ALL
    SELECT 2, p.family, 1,
           format('[%s] %s %%   %s of %s months%s   %s rows   %s rows/s%s', p.bar, to_char(p.percent, 'FM990.0'),
                  p.jobs_done, p.jobs_total, CASE WHEN p.jobs_failed > 0 THEN format(', %s failed', p.jobs_failed) END,
                  to_char(p.rows_written, 'FM999,999,999,990'),
                  to_char(coalesce(p.rows_per_second, 0), 'FM999,999,990'),
                  '   ' || to_char(p.eta, 'HH24:MI:SS') || ' to go')
      FROM bqx.progress AS p WHERE p.run_id = (SELECT r.run_id FROM latest AS r)
    UNION ALL
    SELECT 3, 'now', row_number() OVER (ORDER BY j.worker, j.title),
           format('[W%s] %s%s   %s s', coalesce(to_char(j.worker, 'FM9900'), '--'), j.title,
                  '   ' || to_char(j.rows_written, 'FM999,999,999,990') || ' rows', to_char(j.seconds, 'FM999990.00'))
      FROM jobs AS j WHERE j.state = 'running'
    UNION ALL
    SELECT 4, 'slowest', nth, format('%s   %s s', title, to_char(seconds, 'FM999990.00'))
      FROM (SELECT j.*, row_number() OVER (ORDER BY j.seconds DESC, j.title) AS nth
              FROM jobs AS j WHERE j.state = 'done') AS done WHERE nth <= 3
    UNION ALL
    SELECT 5, 'failed', nth, CASE WHEN nth <= 5 THEN format('%s   %s', title, left(replace(error, E'\n', ' '), 90))
                             ELSE format('and %s more', total - 5) END
      FROM (SELECT j.*, row_number() OVER (ORDER BY j.finished_at DESC, j.title) AS nth, count(*) OVER () AS total
              FROM jobs AS j WHERE j.state = 'failed') AS failed WHERE nth <= 6
    UNION ALL
    SELECT 6, 'last', i - greatest(total - 8, 0), line
      FROM (SELECT l.line, row_number() OVER () AS i, count(*) OVER () AS total FROM bqx.recent AS l) AS recent
     WHERE i > total - 8
)
SELECT rpad(CASE l.nth WHEN 1 THEN l.label ELSE '' END, 8) || l.line AS line
  FROM lines AS l ORDER BY l.section, l.label, l.nth;
COMMENT ON VIEW bqx.dashboard IS 'The latest run on one screen: SELECT * FROM bqx.dashboard \watch 10';

GRANT SELECT ON bqx.runs, bqx.jobs, bqx.progress, bqx.pair_progress, bqx.recent, bqx.storage, bqx.dashboard TO PUBLIC;

SET LOCAL search_path TO bqx, pg_temp;
