"""Both families with numpy.

Nothing is done window by window. Sums and extrema of a window are made of those of blocks, and these of shifted arrays:
the windows are multiples of the blocks. The parabola's coefficients around the window's middle are correlations of the
series with two fixed kernels, for which numpy has its fastest loops; all else follows from them.
"""

from functools import reduce

import numpy as np

from months import AGG_METRICS, BQX_METRICS, BQX_WINDOWS, REG_METRICS, REG_WINDOWS, serve


def backward_windows(p):
    block = 15
    y = p - 100  # keeps digits in the sums of squares
    sums, squares = in_blocks(np.add, y, block), in_blocks(np.add, y * y, block)
    maxima, minima = in_blocks(np.maximum, p, block), in_blocks(np.minimum, p, block)
    columns = {}
    for window in BQX_WINDOWS:
        oldest, now = p[:-window], p[window:]
        total = of_blocks(np.add, sums, block, window)
        maximum, minimum = of_blocks(np.maximum, maxima, block, window), of_blocks(np.minimum, minima, block, window)
        variance = (of_blocks(np.add, squares, block, window) - total * total / window) / (window - 1)
        deviation = np.sqrt(np.maximum(variance, 0))
        values = {
            "return": (total - window * (now - 100)) / now,
            "max_index": maximum,
            "min_index": minimum,
            "avg_index": 100 + total / window,
            "stdev_index": deviation,
            "endpoint": (oldest - now) / now,
            "range": (maximum - minimum) / now,
            "volatility": deviation / now,
        }
        columns |= {f"w{window}_bqx_{metric}": after_nulls(values[metric], window) for metric in BQX_METRICS}
    # The last window's once more.
    return columns | {f"agg_bqx_{metric}": after_nulls(values[metric], window) for metric in AGG_METRICS}


def regressions(p):
    block = 30
    y = p - 100
    sums, squares = in_blocks(np.add, y, block), in_blocks(np.add, y * y, block)
    columns = {}
    for window in REG_WINDOWS:
        oldest, now, newest = p[:-window], p[window:], p[window - 1 : -1]
        end = (window - 1) / 2
        u = np.arange(window) - end  # sums to 0
        q = u * u - (u * u).mean()  # sums to 0, and so does u * q: y = mean + slope * u + a * q
        slope = np.correlate(y[:-1], u / (u * u).sum())
        a = np.correlate(y[:-1], q / (q * q).sum())
        total = of_blocks(np.add, sums, block, window)
        ss_total = of_blocks(np.add, squares, block, window) - total * total / window
        ss_residual = np.maximum(ss_total - slope * slope * (u * u).sum() - a * a * (q * q).sum(), 0)
        yhat_end = 100 + total / window + slope * end + a * q[-1]
        values = {
            "a": a,
            "b": slope - 2 * a * end,
            "c": 100 + total / window - slope * end + a * q[0],
            "r2": 1 - np.divide(ss_residual, ss_total, out=np.zeros_like(a), where=ss_total > 0),
            "rmse": np.sqrt(ss_residual / window),
            "yhat_end": yhat_end,
            "resid_end": newest - yhat_end,
            "slope_end": slope + 2 * a * end,
            "endpoint": (now - oldest) / oldest,
        }
        columns |= {f"w{window}_reg_{metric}": after_nulls(values[metric], window) for metric in REG_METRICS}
    return columns


def in_blocks(combine, series, block):
    """Of each `block` successive values, the first of which is the result's index."""
    length = len(series) - block + 1
    return reduce(combine, (series[shift : shift + length] for shift in range(block)))


def of_blocks(combine, blocks, block, window):
    """Of the windows before each bar that has one: `window` successive values, put together from blocks."""
    length = len(blocks) + block - 1 - window
    return reduce(combine, (blocks[shift : shift + length] for shift in range(0, window, block)))


def after_nulls(values, window):
    """A column: the first bars have no window."""
    return np.concatenate([np.full(window, np.nan), values])


serve(lambda indexes: (backward_windows(indexes), regressions(indexes)))
