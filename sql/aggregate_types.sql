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

CREATE TYPE bqx.macd_reading AS (
    line double precision,
    signal double precision,
    histogram double precision
);
COMMENT ON TYPE bqx.macd_reading IS 'Moving average convergence/divergence';
COMMENT ON COLUMN bqx.macd_reading.line IS 'the fast exponential average minus the slow one';
COMMENT ON COLUMN bqx.macd_reading.signal IS 'exponential average of the line';
COMMENT ON COLUMN bqx.macd_reading.histogram IS 'line - signal';

CREATE TYPE bqx.bollinger_reading AS (
    upper double precision,
    middle double precision,
    lower double precision,
    width double precision,
    percent_b double precision
);
COMMENT ON TYPE bqx.bollinger_reading IS 'Bollinger bands';
COMMENT ON COLUMN bqx.bollinger_reading.upper IS 'middle + so many standard deviations of the population';
COMMENT ON COLUMN bqx.bollinger_reading.middle IS 'mean of the last values';
COMMENT ON COLUMN bqx.bollinger_reading.lower IS 'middle - as much';
COMMENT ON COLUMN bqx.bollinger_reading.width IS '(upper - lower) / middle';
COMMENT ON COLUMN bqx.bollinger_reading.percent_b IS '(value - lower) / (upper - lower); NULL where the last values are all equal';

CREATE TYPE bqx.stochastic_reading AS (
    k double precision,
    d double precision
);
COMMENT ON TYPE bqx.stochastic_reading IS 'Stochastic oscillator';
COMMENT ON COLUMN bqx.stochastic_reading.k IS
    'mean of 100 * (close - lowest low) / (highest high - lowest low) over the last slow_k bars';
COMMENT ON COLUMN bqx.stochastic_reading.d IS 'mean of k over the last slow_d bars';
