-- The rolling quadratic regressions of one month, in the fastest plain SQL we know.
--
-- Run by psql it needs -v bars=bqx.m1_eurusd -v target=… -v month=2024-07-01 -v until=2024-08-01 (UTC months).
--
-- The parabola through a window of W bars, around its middle. With u = i - (the middle's i), Σu = 0, and Σu² = W(W²-1)/12
-- and Σ(u² - Σu²/W)² = W(W²-1)(W²-4)/180 are constants, so
--     slope = Σuy / Σu²,   a = (Σu²y - Σu²/W · Σy) / Σ(u² - Σu²/W)²,
-- and what slope and a leave of Σ(y - mean)² is the sum of squared residuals. i counts the bars; Σuy and Σu²y are made of
-- Σiy and Σi²y.
--
-- No window is summed: each sum is the difference of two running totals, W bars apart. These are numeric, whose
-- differences are exact: running totals of doubles are a little faster still but leave three or four digits of a. i is
-- counted from the middle of the month, and y = p - 100, which keeps digits, too.

INSERT INTO :target (
    ts_utc, rate_index,
    w60_reg_a, w60_reg_b, w60_reg_c, w60_reg_r2, w60_reg_rmse, w60_reg_yhat_end, w60_reg_resid_end, w60_reg_slope_end,
    w60_reg_endpoint,
    w90_reg_a, w90_reg_b, w90_reg_c, w90_reg_r2, w90_reg_rmse, w90_reg_yhat_end, w90_reg_resid_end, w90_reg_slope_end,
    w90_reg_endpoint,
    w150_reg_a, w150_reg_b, w150_reg_c, w150_reg_r2, w150_reg_rmse, w150_reg_yhat_end, w150_reg_resid_end,
    w150_reg_slope_end, w150_reg_endpoint,
    w240_reg_a, w240_reg_b, w240_reg_c, w240_reg_r2, w240_reg_rmse, w240_reg_yhat_end, w240_reg_resid_end,
    w240_reg_slope_end, w240_reg_endpoint,
    w390_reg_a, w390_reg_b, w390_reg_c, w390_reg_r2, w390_reg_rmse, w390_reg_yhat_end, w390_reg_resid_end,
    w390_reg_slope_end, w390_reg_endpoint,
    w630_reg_a, w630_reg_b, w630_reg_c, w630_reg_r2, w630_reg_rmse, w630_reg_yhat_end, w630_reg_resid_end,
    w630_reg_slope_end, w630_reg_endpoint)
WITH bars AS (
    SELECT time, rate_index AS p, (rate_index - 100)::numeric(20,12) AS y,
           row_number() OVER (ORDER BY time) - 16000 AS i
      FROM :bars
     WHERE time < :'until'
       AND time >= coalesce((SELECT time FROM :bars WHERE time < :'month' ORDER BY time DESC OFFSET 629 LIMIT 1),
                            '-infinity')
), totals AS (
    SELECT time, p, i, coalesce(sum(y) OVER before, 0) AS y, coalesce(sum(i * y) OVER before, 0) AS iy,
           coalesce(sum(i * i * y) OVER before, 0) AS iiy, coalesce(sum(y * y) OVER before, 0) AS yy
      FROM bars
    WINDOW before AS (ORDER BY time ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), windows AS (
    SELECT time, p, i, lag(p) OVER series AS newest,
           lag(p, 60) OVER series AS oldest60, (y - lag(y, 60) OVER series)::float8 AS y60,
           (iy - lag(iy, 60) OVER series)::float8 AS iy60, (iiy - lag(iiy, 60) OVER series)::float8 AS iiy60,
           (yy - lag(yy, 60) OVER series)::float8 AS yy60,
           lag(p, 90) OVER series AS oldest90, (y - lag(y, 90) OVER series)::float8 AS y90,
           (iy - lag(iy, 90) OVER series)::float8 AS iy90, (iiy - lag(iiy, 90) OVER series)::float8 AS iiy90,
           (yy - lag(yy, 90) OVER series)::float8 AS yy90,
           lag(p, 150) OVER series AS oldest150, (y - lag(y, 150) OVER series)::float8 AS y150,
           (iy - lag(iy, 150) OVER series)::float8 AS iy150, (iiy - lag(iiy, 150) OVER series)::float8 AS iiy150,
           (yy - lag(yy, 150) OVER series)::float8 AS yy150,
           lag(p, 240) OVER series AS oldest240, (y - lag(y, 240) OVER series)::float8 AS y240,
           (iy - lag(iy, 240) OVER series)::float8 AS iy240, (iiy - lag(iiy, 240) OVER series)::float8 AS iiy240,
           (yy - lag(yy, 240) OVER series)::float8 AS yy240,
           lag(p, 390) OVER series AS oldest390, (y - lag(y, 390) OVER series)::float8 AS y390,
           (iy - lag(iy, 390) OVER series)::float8 AS iy390, (iiy - lag(iiy, 390) OVER series)::float8 AS iiy390,
           (yy - lag(yy, 390) OVER series)::float8 AS yy390,
           lag(p, 630) OVER series AS oldest630, (y - lag(y, 630) OVER series)::float8 AS y630,
           (iy - lag(iy, 630) OVER series)::float8 AS iy630, (iiy - lag(iiy, 630) OVER series)::float8 AS iiy630,
           (yy - lag(yy, 630) OVER series)::float8 AS yy630
      FROM totals
    WINDOW series AS (ORDER BY time)
), moments AS (
    SELECT *,
           iy60 - (i - 30.5::float8) * y60 AS uy60,
           iiy60 - (i - 30.5::float8) * (2 * iy60 - (i - 30.5::float8) * y60) AS uuy60,
           iy90 - (i - 45.5::float8) * y90 AS uy90,
           iiy90 - (i - 45.5::float8) * (2 * iy90 - (i - 45.5::float8) * y90) AS uuy90,
           iy150 - (i - 75.5::float8) * y150 AS uy150,
           iiy150 - (i - 75.5::float8) * (2 * iy150 - (i - 75.5::float8) * y150) AS uuy150,
           iy240 - (i - 120.5::float8) * y240 AS uy240,
           iiy240 - (i - 120.5::float8) * (2 * iy240 - (i - 120.5::float8) * y240) AS uuy240,
           iy390 - (i - 195.5::float8) * y390 AS uy390,
           iiy390 - (i - 195.5::float8) * (2 * iy390 - (i - 195.5::float8) * y390) AS uuy390,
           iy630 - (i - 315.5::float8) * y630 AS uy630,
           iiy630 - (i - 315.5::float8) * (2 * iy630 - (i - 315.5::float8) * y630) AS uuy630
      FROM windows
), fits AS (
    SELECT time, p, newest,
           uy60 / 17995::float8 AS slope60,
           (uuy60 - (3599::float8 / 12) * y60) / (12942004::float8 / 3) AS a60,
           100 + y60 / 60 AS mean60, yy60 - y60 * y60 / 60 AS total60, oldest60,
           uy90 / 60742.5::float8 AS slope90,
           (uuy90 - (8099::float8 / 12) * y90) / 32784752::float8 AS a90,
           100 + y90 / 90 AS mean90, yy90 - y90 * y90 / 90 AS total90, oldest90,
           uy150 / 281237.5::float8 AS slope150,
           (uuy150 - (22499::float8 / 12) * y150) / (1265343760::float8 / 3) AS a150,
           100 + y150 / 150 AS mean150, yy150 - y150 * y150 / 150 AS total150, oldest150,
           uy240 / 1151980::float8 AS slope240,
           (uuy240 - (57599::float8 / 12) * y240) / (13269888016::float8 / 3) AS a240,
           100 + y240 / 240 AS mean240, yy240 - y240 * y240 / 240 AS total240, oldest240,
           uy390 / 4943217.5::float8 AS slope390,
           (uuy390 - (152099::float8 / 12) * y390) / (150368721776::float8 / 3) AS a390,
           100 + y390 / 390 AS mean390, yy390 - y390 * y390 / 390 AS total390, oldest390,
           uy630 / 20837197.5::float8 AS slope630,
           (uuy630 - (396899::float8 / 12) * y630) / 551346689264::float8 AS a630,
           100 + y630 / 630 AS mean630, yy630 - y630 * y630 / 630 AS total630, oldest630
      FROM moments
), ends AS (
    SELECT *,
           mean60 - a60 * (3599::float8 / 12) AS middle60,
           mean90 - a90 * (8099::float8 / 12) AS middle90,
           mean150 - a150 * (22499::float8 / 12) AS middle150,
           mean240 - a240 * (57599::float8 / 12) AS middle240,
           mean390 - a390 * (152099::float8 / 12) AS middle390,
           mean630 - a630 * (396899::float8 / 12) AS middle630,
           greatest(total60 - slope60 * slope60 * 17995::float8
                    - a60 * a60 * (12942004::float8 / 3), 0) AS residual60,
           greatest(total90 - slope90 * slope90 * 60742.5::float8
                    - a90 * a90 * 32784752::float8, 0) AS residual90,
           greatest(total150 - slope150 * slope150 * 281237.5::float8
                    - a150 * a150 * (1265343760::float8 / 3), 0) AS residual150,
           greatest(total240 - slope240 * slope240 * 1151980::float8
                    - a240 * a240 * (13269888016::float8 / 3), 0) AS residual240,
           greatest(total390 - slope390 * slope390 * 4943217.5::float8
                    - a390 * a390 * (150368721776::float8 / 3), 0) AS residual390,
           greatest(total630 - slope630 * slope630 * 20837197.5::float8
                    - a630 * a630 * 551346689264::float8, 0) AS residual630
      FROM fits
)
SELECT time, p,
       a60, slope60 - 59 * a60, a60 * 870.25::float8 - slope60 * 29.5::float8 + middle60,
       CASE WHEN total60 > 0 THEN 1 - residual60 / total60 WHEN total60 IS NOT NULL THEN 1 END,
       CASE WHEN total60 IS NOT NULL THEN sqrt(residual60 / 60) END,
       a60 * 870.25::float8 + slope60 * 29.5::float8 + middle60,
       newest - (a60 * 870.25::float8 + slope60 * 29.5::float8 + middle60),
       59 * a60 + slope60, (p - oldest60) / oldest60,
       a90, slope90 - 89 * a90, a90 * 1980.25::float8 - slope90 * 44.5::float8 + middle90,
       CASE WHEN total90 > 0 THEN 1 - residual90 / total90 WHEN total90 IS NOT NULL THEN 1 END,
       CASE WHEN total90 IS NOT NULL THEN sqrt(residual90 / 90) END,
       a90 * 1980.25::float8 + slope90 * 44.5::float8 + middle90,
       newest - (a90 * 1980.25::float8 + slope90 * 44.5::float8 + middle90),
       89 * a90 + slope90, (p - oldest90) / oldest90,
       a150, slope150 - 149 * a150, a150 * 5550.25::float8 - slope150 * 74.5::float8 + middle150,
       CASE WHEN total150 > 0 THEN 1 - residual150 / total150 WHEN total150 IS NOT NULL THEN 1 END,
       CASE WHEN total150 IS NOT NULL THEN sqrt(residual150 / 150) END,
       a150 * 5550.25::float8 + slope150 * 74.5::float8 + middle150,
       newest - (a150 * 5550.25::float8 + slope150 * 74.5::float8 + middle150),
       149 * a150 + slope150, (p - oldest150) / oldest150,
       a240, slope240 - 239 * a240, a240 * 14280.25::float8 - slope240 * 119.5::float8 + middle240,
       CASE WHEN total240 > 0 THEN 1 - residual240 / total240 WHEN total240 IS NOT NULL THEN 1 END,
       CASE WHEN total240 IS NOT NULL THEN sqrt(residual240 / 240) END,
       a240 * 14280.25::float8 + slope240 * 119.5::float8 + middle240,
       newest - (a240 * 14280.25::float8 + slope240 * 119.5::float8 + middle240),
       239 * a240 + slope240, (p - oldest240) / oldest240,
       a390, slope390 - 389 * a390, a390 * 37830.25::float8 - slope390 * 194.5::float8 + middle390,
       CASE WHEN total390 > 0 THEN 1 - residual390 / total390 WHEN total390 IS NOT NULL THEN 1 END,
       CASE WHEN total390 IS NOT NULL THEN sqrt(residual390 / 390) END,
       a390 * 37830.25::float8 + slope390 * 194.5::float8 + middle390,
       newest - (a390 * 37830.25::float8 + slope390 * 194.5::float8 + middle390),
       389 * a390 + slope390, (p - oldest390) / oldest390,
       a630, slope630 - 629 * a630, a630 * 98910.25::float8 - slope630 * 314.5::float8 + middle630,
       CASE WHEN total630 > 0 THEN 1 - residual630 / total630 WHEN total630 IS NOT NULL THEN 1 END,
       CASE WHEN total630 IS NOT NULL THEN sqrt(residual630 / 630) END,
       a630 * 98910.25::float8 + slope630 * 314.5::float8 + middle630,
       newest - (a630 * 98910.25::float8 + slope630 * 314.5::float8 + middle630),
       629 * a630 + slope630, (p - oldest630) / oldest630
  FROM ends
 WHERE time >= :'month'
 ORDER BY time;
