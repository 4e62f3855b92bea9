-- The backward-window metrics of one month, in the fastest plain SQL we know.
--
-- Run by psql it needs -v bars=bqx.m1_eurusd -v target=… -v month=2024-07-01 -v until=2024-08-01 (UTC months).
--
-- Every window is made of blocks of 15 bars: only these are aggregated, and a longer window puts together the block that
-- ends at its newest bar and, through lag, those that end 15, 30, … bars before. y = p - 100 keeps digits in the sums of
-- squares.

INSERT INTO :target (
    ts_utc, rate_index,
    w15_bqx_return, w15_bqx_max_index, w15_bqx_min_index, w15_bqx_avg_index, w15_bqx_stdev_index, w15_bqx_endpoint,
    w30_bqx_return, w30_bqx_max_index, w30_bqx_min_index, w30_bqx_avg_index, w30_bqx_stdev_index, w30_bqx_endpoint,
    w45_bqx_return, w45_bqx_max_index, w45_bqx_min_index, w45_bqx_avg_index, w45_bqx_stdev_index, w45_bqx_endpoint,
    w60_bqx_return, w60_bqx_max_index, w60_bqx_min_index, w60_bqx_avg_index, w60_bqx_stdev_index, w60_bqx_endpoint,
    w75_bqx_return, w75_bqx_max_index, w75_bqx_min_index, w75_bqx_avg_index, w75_bqx_stdev_index, w75_bqx_endpoint,
    agg_bqx_return, agg_bqx_max_index, agg_bqx_min_index, agg_bqx_avg_index, agg_bqx_stdev_index, agg_bqx_range,
    agg_bqx_volatility)
WITH bars AS (
    SELECT time, rate_index AS p, rate_index - 100 AS y
      FROM :bars
     WHERE time < :'until'
       AND time >= coalesce((SELECT time FROM :bars WHERE time < :'month' ORDER BY time DESC OFFSET 74 LIMIT 1),
                            '-infinity')
), blocks AS (
    SELECT time, p, CASE WHEN lag(p, 15) OVER series IS NOT NULL THEN sum(y) OVER block END AS sum,
           sum(y * y) OVER block AS squares, max(p) OVER block AS max, min(p) OVER block AS min
      FROM bars
    WINDOW series AS (ORDER BY time), block AS (series ROWS BETWEEN 15 PRECEDING AND 1 PRECEDING)
), windows AS (
    SELECT time, p,
           lag(p, 15) OVER series AS oldest15, sum AS sum15, squares AS squares15, max AS max15, min AS min15,
           lag(p, 30) OVER series AS oldest30,
           sum + lag(sum, 15) OVER series AS sum30,
           squares + lag(squares, 15) OVER series AS squares30,
           greatest(max, lag(max, 15) OVER series) AS max30,
           least(min, lag(min, 15) OVER series) AS min30,
           lag(p, 45) OVER series AS oldest45,
           sum + lag(sum, 15) OVER series + lag(sum, 30) OVER series AS sum45,
           squares + lag(squares, 15) OVER series + lag(squares, 30) OVER series AS squares45,
           greatest(max, lag(max, 15) OVER series, lag(max, 30) OVER series) AS max45,
           least(min, lag(min, 15) OVER series, lag(min, 30) OVER series) AS min45,
           lag(p, 60) OVER series AS oldest60,
           sum + lag(sum, 15) OVER series + lag(sum, 30) OVER series + lag(sum, 45) OVER series AS sum60,
           squares + lag(squares, 15) OVER series + lag(squares, 30) OVER series + lag(squares, 45) OVER series
               AS squares60,
           greatest(max, lag(max, 15) OVER series, lag(max, 30) OVER series, lag(max, 45) OVER series) AS max60,
           least(min, lag(min, 15) OVER series, lag(min, 30) OVER series, lag(min, 45) OVER series) AS min60,
           lag(p, 75) OVER series AS oldest75,
           sum + lag(sum, 15) OVER series + lag(sum, 30) OVER series + lag(sum, 45) OVER series + lag(sum, 60)
               OVER series AS sum75,
           squares + lag(squares, 15) OVER series + lag(squares, 30) OVER series + lag(squares, 45) OVER series
               + lag(squares, 60) OVER series AS squares75,
           greatest(max, lag(max, 15) OVER series, lag(max, 30) OVER series, lag(max, 45) OVER series, lag(max,
               60) OVER series) AS max75,
           least(min, lag(min, 15) OVER series, lag(min, 30) OVER series, lag(min, 45) OVER series, lag(min,
               60) OVER series) AS min75
      FROM blocks
    WINDOW series AS (ORDER BY time)
)
SELECT time, p,
       (15 * (100 - p) + sum15) / p, CASE WHEN oldest15 IS NOT NULL THEN max15 END,
       CASE WHEN oldest15 IS NOT NULL THEN min15 END, 100 + sum15 / 15,
       CASE WHEN sum15 IS NOT NULL THEN sqrt(greatest(squares15 - sum15 * sum15 / 15, 0) / 14) END,
       (oldest15 - p) / p,
       (30 * (100 - p) + sum30) / p, CASE WHEN oldest30 IS NOT NULL THEN max30 END,
       CASE WHEN oldest30 IS NOT NULL THEN min30 END, 100 + sum30 / 30,
       CASE WHEN sum30 IS NOT NULL THEN sqrt(greatest(squares30 - sum30 * sum30 / 30, 0) / 29) END,
       (oldest30 - p) / p,
       (45 * (100 - p) + sum45) / p, CASE WHEN oldest45 IS NOT NULL THEN max45 END,
       CASE WHEN oldest45 IS NOT NULL THEN min45 END, 100 + sum45 / 45,
       CASE WHEN sum45 IS NOT NULL THEN sqrt(greatest(squares45 - sum45 * sum45 / 45, 0) / 44) END,
       (oldest45 - p) / p,
       (60 * (100 - p) + sum60) / p, CASE WHEN oldest60 IS NOT NULL THEN max60 END,
       CASE WHEN oldest60 IS NOT NULL THEN min60 END, 100 + sum60 / 60,
       CASE WHEN sum60 IS NOT NULL THEN sqrt(greatest(squares60 - sum60 * sum60 / 60, 0) / 59) END,
       (oldest60 - p) / p,
       (75 * (100 - p) + sum75) / p, CASE WHEN oldest75 IS NOT NULL THEN max75 END,
       CASE WHEN oldest75 IS NOT NULL THEN min75 END, 100 + sum75 / 75,
       CASE WHEN sum75 IS NOT NULL THEN sqrt(greatest(squares75 - sum75 * sum75 / 75, 0) / 74) END,
       (oldest75 - p) / p,
       (75 * (100 - p) + sum75) / p, CASE WHEN oldest75 IS NOT NULL THEN max75 END,
       CASE WHEN oldest75 IS NOT NULL THEN min75 END, 100 + sum75 / 75,
       CASE WHEN sum75 IS NOT NULL THEN sqrt(greatest(squares75 - sum75 * sum75 / 75, 0) / 74) END,
       CASE WHEN oldest75 IS NOT NULL THEN (max75 - min75) / p END,
       CASE WHEN sum75 IS NOT NULL THEN sqrt(greatest(squares75 - sum75 * sum75 / 75, 0) / 74) / p END
  FROM windows
 WHERE time >= :'month'
 ORDER BY time;
