-- What the window aggregates return. The functions that fill them check the number and types of the columns.
CREATE TYPE bqx.window_metrics AS (
    n bigint,
    bqx_return double precision,
    bqx_max double precision,
    bqx_min double precision,
    bqx_avg double precision,
    bqx_stdev double precision,
    bqx_endpoint double precision,
    bqx_range double precision,
    bqx_volatility double precision
);
COMMENT ON TYPE bqx.window_metrics IS 'Backward-window metrics of a current value against the values before it';
COMMENT ON COLUMN bqx.window_metrics.n IS 'number of past values, NULLs not counted';
COMMENT ON COLUMN bqx.window_metrics.bqx_return IS 'sum of (value - p) / p over the past, p being the current value';
COMMENT ON COLUMN bqx.window_metrics.bqx_max IS 'maximum of the past';
COMMENT ON COLUMN bqx.window_metrics.bqx_min IS 'minimum of the past';
COMMENT ON COLUMN bqx.window_metrics.bqx_avg IS 'mean of the past';
COMMENT ON COLUMN bqx.window_metrics.bqx_stdev IS 'sample deviation of the past';
COMMENT ON COLUMN bqx.window_metrics.bqx_endpoint IS '(oldest - p) / p';
COMMENT ON COLUMN bqx.window_metrics.bqx_range IS '(maximum - minimum) / p';
COMMENT ON COLUMN bqx.window_metrics.bqx_volatility IS 'deviation / p';

CREATE TYPE bqx.quadratic_fit AS (
    n bigint,
    reg_a double precision,
    reg_b double precision,
    reg_c double precision,
    reg_r2 double precision,
    reg_rmse double precision,
    reg_yhat_end double precision,
    reg_resid_end double precision,
    reg_slope_end double precision
);
COMMENT ON TYPE bqx.quadratic_fit IS 'Least-squares parabola a*x^2 + b*x + c of n points';
COMMENT ON COLUMN bqx.quadratic_fit.n IS 'number of points';
COMMENT ON COLUMN bqx.quadratic_fit.reg_a IS 'coefficient of x^2';
COMMENT ON COLUMN bqx.quadratic_fit.reg_b IS 'coefficient of x';
COMMENT ON COLUMN bqx.quadratic_fit.reg_c IS 'constant';
COMMENT ON COLUMN bqx.quadratic_fit.reg_r2 IS '1 - SSres / SStot; 1 where all y are equal';
COMMENT ON COLUMN bqx.quadratic_fit.reg_rmse IS 'root of SSres / n';
COMMENT ON COLUMN bqx.quadratic_fit.reg_yhat_end IS 'the fit at the greatest x';
COMMENT ON COLUMN bqx.quadratic_fit.reg_resid_end IS 'y at the greatest x minus the fit';
COMMENT ON COLUMN bqx.quadratic_fit.reg_slope_end IS 'slope of the fit at the greatest x';
