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
COMMENT ON TYPE bqx.window_metrics IS
    'Backward-window metrics of a current value p and the n values before it: bqx_return = sum of (value - p) / p; '
    'maximum, minimum, mean and sample deviation of the n values; bqx_endpoint = (oldest - p) / p; '
    'bqx_range = (max - min) / p; bqx_volatility = stdev / p';

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
COMMENT ON TYPE bqx.quadratic_fit IS
    'Least-squares parabola a*x^2 + b*x + c of n points, with r2, root of the mean squared residual, and the fit, the '
    'residual and the slope at the greatest x';
