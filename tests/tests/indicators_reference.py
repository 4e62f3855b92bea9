"""The indicators by TA-Lib (and numpy, for what TA-Lib has not), beside bars.

    indicators_reference.py compare FILE   FILE has bars and what bqx says of them: complains where they differ
    indicators_reference.py record FILE    FILE has bars: writes them with TA-Lib's values

Files are CSV with a header; nothing is NULL. The columns of indicators are named as in INDICATORS.
"""

import csv
import sys

import numpy as np
import talib
from numpy.lib.stride_tricks import sliding_window_view

TOLERANCE = 1e-9


def windows(values, period):
    """Of each row the last `period` values; rows of NaN where there are not as many."""
    padded = np.concatenate([np.full(period - 1, np.nan), values])
    return sliding_window_view(padded, period)


def percent_b(values, period, deviations):
    """(value - lower) / (upper - lower), NaN where all values are equal."""
    last = windows(values, period)
    reach = deviations * last.std(axis=1)
    reach[np.ptp(last, axis=1) == 0] = np.nan
    return ((values - last.mean(axis=1)) / reach + 1) / 2


def width(values, period, deviations):
    last = windows(values, period)
    return 2 * deviations * last.std(axis=1) / last.mean(axis=1)


def cci(bar, period):
    """TA-Lib's, but 0 where prices do not vary: there its mean's rounding is all that is left."""
    typical = (bar["high"] + bar["low"] + bar["close"]) / 3
    found = talib.CCI(bar["high"], bar["low"], bar["close"], period)
    found[np.ptp(windows(typical, period), axis=1) == 0] = 0
    return found


def cci_rounding(bar, period):
    """What the last bits of a price make of an index where prices hardly vary."""
    typical = (bar["high"] + bar["low"] + bar["close"]) / 3
    last = windows(typical, period)
    spread = np.abs(last - last.mean(axis=1, keepdims=True)).mean(axis=1)
    with np.errstate(divide="ignore"):
        return 8 * np.spacing(typical) / (0.015 * spread)


def realized_volatility(values, period):
    returns = np.log(values[1:] / values[:-1])
    return np.concatenate([[np.nan], np.sqrt((windows(returns, period) ** 2).sum(axis=1))])


def vwap(price, volume):
    with np.errstate(invalid="ignore"):
        return np.cumsum(price * volume) / np.cumsum(volume)


def hlc(bar):
    return bar["high"], bar["low"], bar["close"]


# Of bars by column.
INDICATORS = {
    "sma_20": lambda bar: talib.SMA(bar["close"], 20),
    "sma_240": lambda bar: talib.SMA(bar["close"], 240),
    "ema_12": lambda bar: talib.EMA(bar["close"], 12),
    "wma_30": lambda bar: talib.WMA(bar["close"], 30),
    "rsi_2": lambda bar: talib.RSI(bar["close"], 2),
    "rsi_14": lambda bar: talib.RSI(bar["close"], 14),
    "macd_line": lambda bar: talib.MACD(bar["close"], 12, 26, 9)[0],
    "macd_signal": lambda bar: talib.MACD(bar["close"], 12, 26, 9)[1],
    "macd_histogram": lambda bar: talib.MACD(bar["close"], 12, 26, 9)[2],
    "fast_macd_signal": lambda bar: talib.MACD(bar["close"], 3, 10, 16)[1],
    "bollinger_upper": lambda bar: talib.BBANDS(bar["close"], 20, 2.0, 2.0)[0],
    "bollinger_middle": lambda bar: talib.BBANDS(bar["close"], 20, 2.0, 2.0)[1],
    "bollinger_lower": lambda bar: talib.BBANDS(bar["close"], 20, 2.0, 2.0)[2],
    "bollinger_width": lambda bar: width(bar["close"], 20, 2.0),
    "bollinger_percent_b": lambda bar: percent_b(bar["close"], 20, 2.0),
    "atr_1": lambda bar: talib.ATR(*hlc(bar), 1),
    "atr_14": lambda bar: talib.ATR(*hlc(bar), 14),
    "stochastic_k": lambda bar: talib.STOCH(*hlc(bar), 14, 3, 0, 3, 0)[0],
    "stochastic_d": lambda bar: talib.STOCH(*hlc(bar), 14, 3, 0, 3, 0)[1],
    "williams_r_14": lambda bar: talib.WILLR(*hlc(bar), 14),
    "cci_20": lambda bar: cci(bar, 20),
    "roc_10": lambda bar: talib.ROC(bar["close"], 10),
    "momentum_10": lambda bar: talib.MOM(bar["close"], 10),
    "obv": lambda bar: talib.OBV(bar["close"], bar["volume"]),
    "vwap": lambda bar: vwap(bar["close"], bar["volume"]),
    "realized_volatility_60": lambda bar: realized_volatility(bar["close"], 60),
}

# By how much more than TOLERANCE they may differ.
ROUNDING = {"cci_20": lambda bar: cci_rounding(bar, 20)}

BAR = ["open", "high", "low", "close", "volume"]


def read(path):
    """Columns by name, NaN for what is empty."""
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        columns = {name: [] for name in rows.fieldnames}
        for row in rows:
            for name, text in row.items():
                columns[name].append(float(text) if text else np.nan)
    return {name: np.array(values) for name, values in columns.items()}


def difference(found, expected, rounding):
    """Where a column is not as expected, in words."""
    missing = np.isnan(found) != np.isnan(expected)
    far = np.abs(found - expected) > TOLERANCE * np.maximum(1, np.abs(expected)) + rounding
    wrong = np.flatnonzero(missing | far)
    if len(wrong):
        row = wrong[0]
        return f"{len(wrong)} of {len(found)} rows differ, first in row {row}: {found[row]!r}, not {expected[row]!r}"


def compare(path):
    columns = read(path)
    found = [name for name in columns if name not in BAR]
    if sorted(found) != sorted(INDICATORS):
        sys.exit(f"other columns than {sorted(INDICATORS)}: {found}")
    nothing = lambda bars: 0
    wrong = {
        name: difference(columns[name], INDICATORS[name](columns), ROUNDING.get(name, nothing)(columns))
        for name in found
    }
    complaints = [f"{name}: {said}" for name, said in wrong.items() if said]
    if complaints:
        sys.exit("\n".join(complaints))
    print(f"{len(found)} indicators of {len(columns['close'])} bars agree with TA-Lib {talib.__ta_version__.decode()}")


def record(path):
    bars = read(path)
    columns = [bars[name] for name in BAR] + [of(bars) for of in INDICATORS.values()]
    print(",".join(BAR + list(INDICATORS)))
    for row in zip(*columns):
        print(",".join("" if np.isnan(value) else repr(float(value)) for value in row))


{"compare": compare, "record": record}[sys.argv[1]](sys.argv[2])
