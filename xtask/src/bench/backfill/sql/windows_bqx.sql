-- The backward-window metrics of one month, with PostgreSQL's own window functions over named windows.
--
-- Run by psql it needs -v bars=bqx.m1_eurusd -v target=… -v month=2024-07-01 -v until=2024-08-01 (UTC months).
--
-- What was done for speed: one sort for all windows; a window's sum is its mean times its width, so that nothing is
-- summed twice; agg_… are the metrics of the 75 bars, computed once. Frames are so short that avg and stddev_samp of
-- doubles, which PostgreSQL adds up from the start for each row, are faster than those of numeric, which it slides.

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
    SELECT time, rate_index AS p
      FROM :bars
     WHERE time < :'until'
       AND time >= coalesce((SELECT time FROM :bars WHERE time < :'month' ORDER BY time DESC OFFSET 74 LIMIT 1),
                            '-infinity')
), windows AS (
    SELECT time, p,
           avg(p) OVER w15 AS avg15, max(p) OVER w15 AS max15, min(p) OVER w15 AS min15,
           stddev_samp(p) OVER w15 AS stdev15, lag(p, 15) OVER series AS oldest15,
           avg(p) OVER w30 AS avg30, max(p) OVER w30 AS max30, min(p) OVER w30 AS min30,
           stddev_samp(p) OVER w30 AS stdev30, lag(p, 30) OVER series AS oldest30,
           avg(p) OVER w45 AS avg45, max(p) OVER w45 AS max45, min(p) OVER w45 AS min45,
           stddev_samp(p) OVER w45 AS stdev45, lag(p, 45) OVER series AS oldest45,
           avg(p) OVER w60 AS avg60, max(p) OVER w60 AS max60, min(p) OVER w60 AS min60,
           stddev_samp(p) OVER w60 AS stdev60, lag(p, 60) OVER series AS oldest60,
           avg(p) OVER w75 AS avg75, max(p) OVER w75 AS max75, min(p) OVER w75 AS min75,
           stddev_samp(p) OVER w75 AS stdev75, lag(p, 75) OVER series AS oldest75
      FROM bars
    WINDOW series AS (ORDER BY time),
           w15 AS (series ROWS BETWEEN 15 PRECEDING AND 1 PRECEDING),
           w30 AS (series ROWS BETWEEN 30 PRECEDING AND 1 PRECEDING),
           w45 AS (series ROWS BETWEEN 45 PRECEDING AND 1 PRECEDING),
           w60 AS (series ROWS BETWEEN 60 PRECEDING AND 1 PRECEDING),
           w75 AS (series ROWS BETWEEN 75 PRECEDING AND 1 PRECEDING)
)
SELECT time, p,
       CASE WHEN oldest15 IS NOT NULL THEN 15 * (avg15 - p) / p END, CASE WHEN oldest15 IS NOT NULL THEN max15 END,
       CASE WHEN oldest15 IS NOT NULL THEN min15 END, CASE WHEN oldest15 IS NOT NULL THEN avg15 END,
       CASE WHEN oldest15 IS NOT NULL THEN stdev15 END, (oldest15 - p) / p,
       CASE WHEN oldest30 IS NOT NULL THEN 30 * (avg30 - p) / p END, CASE WHEN oldest30 IS NOT NULL THEN max30 END,
       CASE WHEN oldest30 IS NOT NULL THEN min30 END, CASE WHEN oldest30 IS NOT NULL THEN avg30 END,
       CASE WHEN oldest30 IS NOT NULL THEN stdev30 END, (oldest30 - p) / p,
       CASE WHEN oldest45 IS NOT NULL THEN 45 * (avg45 - p) / p END, CASE WHEN oldest45 IS NOT NULL THEN max45 END,
       CASE WHEN oldest45 IS NOT NULL THEN min45 END, CASE WHEN oldest45 IS NOT NULL THEN avg45 END,
       CASE WHEN oldest45 IS NOT NULL THEN stdev45 END, (oldest45 - p) / p,
       CASE WHEN oldest60 IS NOT NULL THEN 60 * (avg60 - p) / p END, CASE WHEN oldest60 IS NOT NULL THEN max60 END,
       CASE WHEN oldest60 IS NOT NULL THEN min60 END, CASE WHEN oldest60 IS NOT NULL THEN avg60 END,
       CASE WHEN oldest60 IS NOT NULL THEN stdev60 END, (oldest60 - p) / p,
       CASE WHEN oldest75 IS NOT NULL THEN 75 * (avg75 - p) / p END, CASE WHEN oldest75 IS NOT NULL THEN max75 END,
       CASE WHEN oldest75 IS NOT NULL THEN min75 END, CASE WHEN oldest75 IS NOT NULL THEN avg75 END,
       CASE WHEN oldest75 IS NOT NULL THEN stdev75 END, (oldest75 - p) / p,
       CASE WHEN oldest75 IS NOT NULL THEN 75 * (avg75 - p) / p END, CASE WHEN oldest75 IS NOT NULL THEN max75 END,
       CASE WHEN oldest75 IS NOT NULL THEN min75 END, CASE WHEN oldest75 IS NOT NULL THEN avg75 END,
       CASE WHEN oldest75 IS NOT NULL THEN stdev75 END, CASE WHEN oldest75 IS NOT NULL THEN (max75 - min75) / p END,
       CASE WHEN oldest75 IS NOT NULL THEN stdev75 / p END
  FROM windows
 WHERE time >= :'month'
 ORDER BY time;
