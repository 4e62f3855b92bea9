-- What bqx.candlesticks returns: TA-Lib's values of each pattern, in the order of _candle_pattern_names.

DO $make$
BEGIN
    EXECUTE pg_catalog.format('CREATE TYPE bqx.candle_patterns AS (%s)',
        (SELECT pg_catalog.string_agg(pg_catalog.format('%I smallint', n), ', ' ORDER BY i)
           FROM pg_catalog.unnest(bqx._candle_pattern_names()) WITH ORDINALITY AS u (n, i)));
END
$make$;
COMMENT ON TYPE bqx.candle_patterns IS
    'Candlestick patterns: 100 bullish (or a doji), -100 bearish, 80 and -80 where bodies end at one price, 0 none; NULL in the warm-up';
