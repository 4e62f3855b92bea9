-- From simulated bars to verified tables, stage by stage.
SET client_min_messages = warning;

CALL bqx.simulate_m1(ARRAY['eurusd', 'usdjpy'], '2024-07-01', '2024-08-01');
CALL bqx.set_baselines();
CALL bqx.index_m1();
CALL bqx.create_tables();
CALL bqx.backfill(workers => 0);

-- every bar has one row in each derived table
SELECT 'm1' AS relation, count(*), min(time), max(time) FROM bqx.m1_eurusd
UNION ALL SELECT 'bqx', count(*), min(ts_utc), max(ts_utc) FROM bqx.bqx_eurusd
UNION ALL SELECT 'reg', count(*), min(ts_utc), max(ts_utc) FROM bqx.reg_eurusd;

-- 100 at the baseline bar
SELECT b.pair, b.baseline_time, b.baseline_rate, m.rate_index
  FROM bqx.baseline_rates AS b JOIN bqx.m1_eurusd AS m ON m.time = b.baseline_time
 WHERE b.pair = 'eurusd';

-- NULL exactly in the first W rows of the series, none at the start of August
SELECT count(*) FILTER (WHERE w15_bqx_return IS NULL) AS w15, count(*) FILTER (WHERE w75_bqx_stdev_index IS NULL) AS w75,
       count(*) FILTER (WHERE agg_bqx_range IS NULL) AS agg, count(*) FILTER (WHERE w60_bqx_endpoint IS NULL AND ts_utc >= '2024-08-01') AS august
  FROM bqx.bqx_eurusd;
SELECT count(*) FILTER (WHERE w60_reg_a IS NULL) AS w60, count(*) FILTER (WHERE w630_reg_r2 IS NULL) AS w630,
       count(*) FILTER (WHERE w630_reg_r2 IS NULL AND ts_utc >= '2024-08-01') AS august
  FROM bqx.reg_eurusd;

-- some rows, to the last digit
SELECT ts_utc, rate_index, w15_bqx_return, w15_bqx_max_index, w15_bqx_min_index, w15_bqx_avg_index, w15_bqx_stdev_index, w15_bqx_endpoint
  FROM bqx.bqx_eurusd ORDER BY ts_utc OFFSET 14 LIMIT 2 \gx
SELECT ts_utc, agg_bqx_return, agg_bqx_range, agg_bqx_volatility, w75_bqx_return
  FROM bqx.bqx_usdjpy WHERE ts_utc = '2024-08-01 00:00+00' \gx
SELECT ts_utc, w60_reg_a, w60_reg_b, w60_reg_c, w60_reg_r2, w60_reg_rmse, w60_reg_yhat_end, w60_reg_resid_end, w60_reg_slope_end, w60_reg_endpoint, w630_reg_r2
  FROM bqx.reg_usdjpy WHERE ts_utc = '2024-08-01 00:00+00' \gx

-- the ledger
SELECT family, pair, month, state, rows_written, worker, error FROM bqx.jobs ORDER BY pair, month, family;
SELECT run_id, called_by, arguments, state FROM bqx.runs;
SELECT family, state, jobs_total, jobs_done, jobs_failed, percent, rows_written, bar FROM bqx.progress;

-- again: nothing has changed
CALL bqx.backfill(workers => 0);
SELECT sum(rows_written) FROM bqx.jobs WHERE run_id = 2;

-- a corrected bar is noticed, and touches just its month
UPDATE bqx.m1_eurusd SET close = close + 0.0001, high = high + 0.0001 WHERE time = '2024-07-10 12:00+00';
SELECT check_name, family, pair, month, detail FROM bqx.verify(pairs => ARRAY['eurusd']) WHERE NOT ok AND check_name = 'stale' ORDER BY family, month;
CALL bqx.backfill(workers => 0);
SELECT family, pair, month, rows_written FROM bqx.jobs WHERE run_id = 3 AND rows_written > 0 ORDER BY family;

-- all checks hold
SELECT check_name, count(*) AS checks, bool_and(ok) AS all_hold FROM bqx.verify() GROUP BY check_name ORDER BY check_name;
SELECT family, pair, rows, months, months_total, status FROM bqx.completion_report();
