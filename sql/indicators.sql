-- The technical indicators: aggregates whose result is the reading after the last row, for OVER (ORDER BY time). There is no moving
-- form: a frame that begins anywhere but at the partition's start is read anew for each row.
CREATE AGGREGATE bqx.sma(value double precision, period integer) (
    SFUNC = bqx._sma,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.sma(double precision, integer) IS 'Simple moving average of the last values';

CREATE AGGREGATE bqx.ema(value double precision, period integer) (
    SFUNC = bqx._ema,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.ema(double precision, integer) IS 'Exponential moving average';

CREATE AGGREGATE bqx.wma(value double precision, period integer) (
    SFUNC = bqx._wma,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.wma(double precision, integer) IS 'Linearly weighted moving average of the last values';

CREATE AGGREGATE bqx.rsi(value double precision, period integer) (
    SFUNC = bqx._rsi,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.rsi(double precision, integer) IS 'Relative strength index';

CREATE AGGREGATE bqx.macd(value double precision, fast integer, slow integer, signal integer) (
    SFUNC = bqx._macd,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._macd_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.macd(double precision, integer, integer, integer) IS 'Moving average convergence/divergence: line, signal, histogram';

CREATE AGGREGATE bqx.bollinger(value double precision, period integer, deviations double precision) (
    SFUNC = bqx._bollinger,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._bollinger_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.bollinger(double precision, integer, double precision) IS 'Bollinger bands: upper, middle, lower, width, percent_b';

CREATE AGGREGATE bqx.atr(high double precision, low double precision, close double precision, period integer) (
    SFUNC = bqx._atr,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.atr(double precision, double precision, double precision, integer) IS 'Average true range';

CREATE AGGREGATE bqx.stochastic(high double precision, low double precision, close double precision, period integer, slow_k integer, slow_d integer) (
    SFUNC = bqx._stochastic,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._stochastic_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.stochastic(double precision, double precision, double precision, integer, integer, integer) IS 'Stochastic oscillator: k, d';

CREATE AGGREGATE bqx.williams_r(high double precision, low double precision, close double precision, period integer) (
    SFUNC = bqx._williams_r,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.williams_r(double precision, double precision, double precision, integer) IS 'Williams'' %R, from -100 to 0';

CREATE AGGREGATE bqx.cci(high double precision, low double precision, close double precision, period integer) (
    SFUNC = bqx._cci,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.cci(double precision, double precision, double precision, integer) IS 'Commodity channel index';

CREATE AGGREGATE bqx.roc(value double precision, period integer) (
    SFUNC = bqx._roc,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.roc(double precision, integer) IS 'Rate of change, per cent';

CREATE AGGREGATE bqx.momentum(value double precision, period integer) (
    SFUNC = bqx._momentum,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.momentum(double precision, integer) IS 'The value minus the one so many rows before';

CREATE AGGREGATE bqx.obv(price double precision, volume double precision) (
    SFUNC = bqx._obv,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.obv(double precision, double precision) IS 'On-balance volume';

CREATE AGGREGATE bqx.realized_volatility(value double precision, period integer) (
    SFUNC = bqx._realized_volatility,
    STYPE = internal,
    SSPACE = 512,
    FINALFUNC = bqx._indicator_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.realized_volatility(double precision, integer) IS 'Root of the sum of the last squared logarithmic returns';

CREATE AGGREGATE bqx.candlesticks(open double precision, high double precision, low double precision, close double precision) (
    SFUNC = bqx._candlesticks,
    STYPE = internal,
    SSPACE = 1024,
    FINALFUNC = bqx._candlesticks_final,
    PARALLEL = SAFE
);
COMMENT ON AGGREGATE bqx.candlesticks(double precision, double precision, double precision, double precision) IS
    'Candlestick patterns that end at a bar';
