-- Views for people who watch. Each shows a role what it may see: runs of its own and of roles it is a member of,
-- tables that it may read.

SET LOCAL search_path TO pg_catalog, pg_temp;  -- for what is parsed here: see preflight.sql

CREATE VIEW bqx.pair_progress WITH (security_barrier) AS
SELECT t.family, t.pair, t.months_done, t.months_total, t.rows_written,
       round(100.0 * t.months_done / t.months_total, 1)::double precision AS percent,
       CASE WHEN t.months_failed > 0 THEN 'failed'
            WHEN t.months_done = t.months_total THEN 'complete'
            WHEN t.months_running > 0 OR (t.months_done > 0 AND t.run_state = 'running') THEN 'in progress'
            ELSE 'pending' END AS status
  FROM (SELECT j.family, j.pair, r.state AS run_state,
               count(*) AS months_total,
               count(*) FILTER (WHERE j.state = 'done') AS months_done,
               count(*) FILTER (WHERE j.state = 'failed') AS months_failed,
               count(*) FILTER (WHERE j.state = 'running') AS months_running,
               coalesce(sum(j.rows_written), 0)::bigint AS rows_written,
               rank() OVER (PARTITION BY j.family, j.pair ORDER BY j.run_id DESC) AS nth_latest
          FROM bqx.jobs AS j JOIN bqx.runs AS r USING (run_id)
         GROUP BY j.family, j.pair, j.run_id, r.state) AS t
 WHERE t.nth_latest = 1;
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
SELECT bqx._job_line(t.worker, t.pair, t.month, t.family, t.state, t.rows_written, t.seconds, t.percent,
                     t.error) AS line
  FROM (SELECT j.*,
               -- how far its run had come then
               (SELECT 100.0 * count(*) FILTER (WHERE (s.finished_at, s.pair, s.month, s.family)
                                                   <= (j.finished_at, j.pair, j.month, j.family)) / count(*)
                  FROM bqx.jobs AS s WHERE s.run_id = j.run_id) AS percent
          FROM bqx.jobs AS j
         WHERE j.finished_at IS NOT NULL
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
    SELECT j.*, format('%s %s %s', j.pair, to_char(j.month, 'YYYY-MM'), j.family) AS title
      FROM latest AS r JOIN bqx.jobs AS j USING (run_id)
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
      FROM latest AS r JOIN bqx.progress AS p USING (run_id)
    UNION ALL
    SELECT 3, 'now', row_number() OVER (ORDER BY j.title), j.title FROM jobs AS j WHERE j.state = 'running'
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

GRANT SELECT ON bqx.pair_progress, bqx.recent, bqx.storage, bqx.dashboard TO PUBLIC;

SET LOCAL search_path TO bqx, pg_temp;
