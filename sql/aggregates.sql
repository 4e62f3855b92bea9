-- The window aggregates. SSPACE and MSSPACE tell the planner what a state takes beside what it can see. The final
-- functions are READ_ONLY (the default): they may prepare a state for the next call, but never change its value.
CREATE AGGREGATE bqx.bqx_window_metrics(value double precision) (
    SFUNC = bqx._window_metrics_grow,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._window_metrics_final,
    MSFUNC = bqx._window_metrics_enter,
    MINVFUNC = bqx._window_metrics_leave,
    MSTYPE = internal,
    MSSPACE = 4096,
    MFINALFUNC = bqx._window_metrics_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.bqx_window_metrics(double precision) IS
    'Backward-window metrics: the last row is the current value, the rows before it are the past';

CREATE AGGREGATE bqx.bqx_window_metrics(value double precision, width integer) (
    SFUNC = bqx._sized_window_metrics_grow,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._window_metrics_final,
    MSFUNC = bqx._sized_window_metrics_enter,
    MINVFUNC = bqx._sized_window_metrics_leave,
    MSTYPE = internal,
    MSSPACE = 4096,
    MFINALFUNC = bqx._window_metrics_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.bqx_window_metrics(double precision, integer) IS
    'Backward-window metrics, NULL unless exactly width values precede the current one';

CREATE AGGREGATE bqx.quadratic_reg(y double precision) (
    SFUNC = bqx._quadratic_reg_grow,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._quadratic_reg_final,
    MSFUNC = bqx._quadratic_reg_enter,
    MINVFUNC = bqx._quadratic_reg_leave,
    MSTYPE = internal,
    MSSPACE = 4096,
    MFINALFUNC = bqx._quadratic_reg_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.quadratic_reg(double precision) IS
    'Least-squares parabola through the rows in frame order, x = 0, 1, 2, ...';

CREATE AGGREGATE bqx.quadratic_reg(y double precision, x double precision) (
    SFUNC = bqx._quadratic_reg_xy_grow,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._quadratic_reg_xy_final,
    COMBINEFUNC = bqx._quadratic_reg_xy_combine,
    SERIALFUNC = bqx._quadratic_reg_xy_serialize,
    DESERIALFUNC = bqx._quadratic_reg_xy_deserialize,
    MSFUNC = bqx._quadratic_reg_xy_enter,
    MINVFUNC = bqx._quadratic_reg_xy_leave,
    MSTYPE = internal,
    MSSPACE = 4096,
    MFINALFUNC = bqx._quadratic_reg_xy_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.quadratic_reg(double precision, double precision) IS
    'Least-squares parabola through points, arguments (Y, X) as in regr_slope';

-- Two other results of quadratic_reg's states.
CREATE AGGREGATE bqx.rolling_corr(y double precision, x double precision) (
    SFUNC = bqx._quadratic_reg_xy_grow,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._rolling_corr_final,
    COMBINEFUNC = bqx._quadratic_reg_xy_combine,
    SERIALFUNC = bqx._quadratic_reg_xy_serialize,
    DESERIALFUNC = bqx._quadratic_reg_xy_deserialize,
    MSFUNC = bqx._quadratic_reg_xy_enter,
    MINVFUNC = bqx._quadratic_reg_xy_leave,
    MSTYPE = internal,
    MSSPACE = 4096,
    MFINALFUNC = bqx._rolling_corr_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.rolling_corr(double precision, double precision) IS 'Pearson''s correlation, arguments (Y, X) as in corr; moves with the frame';

CREATE AGGREGATE bqx.vwap(price double precision, volume double precision) (
    SFUNC = bqx._quadratic_reg_xy_grow,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._vwap_final,
    COMBINEFUNC = bqx._quadratic_reg_xy_combine,
    SERIALFUNC = bqx._quadratic_reg_xy_serialize,
    DESERIALFUNC = bqx._quadratic_reg_xy_deserialize,
    MSFUNC = bqx._quadratic_reg_xy_enter,
    MINVFUNC = bqx._quadratic_reg_xy_leave,
    MSTYPE = internal,
    MSSPACE = 4096,
    MFINALFUNC = bqx._vwap_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.vwap(double precision, double precision) IS 'Mean price, weighted by volume';

CREATE AGGREGATE bqx.last_known(value double precision) (
    SFUNC = bqx._last_known,
    STYPE = double precision,
    PARALLEL = RESTRICTED
);
COMMENT ON AGGREGATE bqx.last_known(double precision) IS
    'The last value that is not NULL: what a series stood at where it has no row of its own';
