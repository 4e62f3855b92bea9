"""Both families with DuckDB's SQL, tuned as it is fastest: a backward window is put together from blocks of 15 bars; the
regressions' sums, over named windows, DuckDB itself puts together from a tree of sums.

Numbers come from PostgreSQL and go there through numpy, as for the others; DuckDB reads numpy's arrays in place.
"""

import os

import duckdb
import numpy as np

from months import AGG_METRICS, BQX_METRICS, BQX_WINDOWS, REG_METRICS, REG_WINDOWS, serve


def columns(prefix, window, names, expressions):
    """Metrics of a window, NULL where it is not full."""
    return [
        f"CASE WHEN oldest{window} IS NOT NULL THEN {expressions[name]} END AS {prefix}_{name}" for name in names
    ]


def listed(expressions):
    return ",\n".join(expressions)


def backward_windows():
    def blocks(name, w):
        return [name, *(f"lag({name}, {bars}) OVER series" for bars in range(15, w, 15))]

    windows = listed(
        f"""{" + ".join(blocks("sum", w))} AS sum{w}, {" + ".join(blocks("squares", w))} AS squares{w},
            greatest({", ".join(blocks("max", w))}) AS max{w}, least({", ".join(blocks("min", w))}) AS min{w},
            lag(p, {w}) OVER series AS oldest{w}"""
        for w in BQX_WINDOWS
    )

    def metrics(w):
        deviation = f"sqrt(greatest(squares{w} - sum{w} * sum{w} / {w}, 0) / {w - 1})"
        return {
            "return": f"(sum{w} - {w} * y) / p",
            "max_index": f"max{w}",
            "min_index": f"min{w}",
            "avg_index": f"level + sum{w} / {w}",
            "stdev_index": deviation,
            "endpoint": f"(oldest{w} - p) / p",
            "range": f"(max{w} - min{w}) / p",
            "volatility": f"{deviation} / p",
        }

    results = [column for w in BQX_WINDOWS for column in columns(f"w{w}_bqx", w, BQX_METRICS, metrics(w))]
    results += columns("agg_bqx", 75, AGG_METRICS, metrics(75))
    return f"""
        SELECT {listed(results)}
          FROM (SELECT i, p, y, level, {windows}
                  FROM (SELECT i, p, y, level, max(p) OVER block AS max, min(p) OVER block AS min,
                               sum(y) OVER block AS sum, sum(y * y) OVER block AS squares
                          FROM bars WINDOW block AS (ORDER BY i ROWS BETWEEN 15 PRECEDING AND 1 PRECEDING))
                WINDOW series AS (ORDER BY i))
         ORDER BY i"""


def regressions():
    frames = listed(f"w{w} AS (ORDER BY i ROWS BETWEEN {w} PRECEDING AND 1 PRECEDING)" for w in REG_WINDOWS)
    sums = listed(
        f"""sum(y) OVER w{w} AS y{w}, sum(i * y) OVER w{w} AS iy{w}, sum(i * i * y) OVER w{w} AS iiy{w},
            var_pop(y) OVER w{w} AS variance{w}, lag(p, {w}) OVER series AS oldest{w}"""
        for w in REG_WINDOWS
    )

    # With u = i - (the i of the window's middle), Σu = 0: y = mean + slope * u + a * (u² - Σu²/W). Constants first.
    def end(w):
        return (w - 1) / 2

    def uu(w):
        return (w * w - 1) / 12  # Σu²/W

    def qq(w):
        return (w * w - 1) * (w * w - 4) / 180  # Σ(u² - Σu²/W)²/W

    def coefficients(w):
        middle = f"(i - {(w + 1) / 2})"
        return f"""
            level + y{w} / {w} AS mean{w}, (iy{w} - {middle} * y{w}) / {w * uu(w)} AS slope{w},
            (iiy{w} - {middle} * (2 * iy{w} - {middle} * y{w}) - {uu(w)} * y{w}) / {w * qq(w)} AS a{w}"""

    def ends(w):
        return f"""
            mean{w} + slope{w} * {end(w)} + a{w} * {end(w) ** 2 - uu(w)} AS yhat{w},
            greatest(variance{w} - slope{w} * slope{w} * {uu(w)} - a{w} * a{w} * {qq(w)}, 0) AS residual{w}"""

    def metrics(w):
        return {
            "a": f"a{w}",
            "b": f"slope{w} - {2 * end(w)} * a{w}",
            "c": f"mean{w} - slope{w} * {end(w)} + a{w} * {end(w) ** 2 - uu(w)}",
            "r2": f"CASE WHEN variance{w} > 0 THEN 1 - residual{w} / variance{w} ELSE 1 END",
            "rmse": f"sqrt(residual{w})",
            "yhat_end": f"yhat{w}",
            "resid_end": f"newest - yhat{w}",
            "slope_end": f"slope{w} + {2 * end(w)} * a{w}",
            "endpoint": f"(p - oldest{w}) / oldest{w}",
        }

    results = [column for w in REG_WINDOWS for column in columns(f"w{w}_reg", w, REG_METRICS, metrics(w))]
    return f"""
        SELECT {listed(results)}
          FROM (SELECT *, {listed(ends(w) for w in REG_WINDOWS)}
                  FROM (SELECT *, {listed(coefficients(w) for w in REG_WINDOWS)}
                          FROM (SELECT i, p, level, lag(p) OVER series AS newest, {sums}
                                  FROM bars WINDOW series AS (ORDER BY i), {frames})))
         ORDER BY i"""


CONNECTION = duckdb.connect(config={"threads": int(os.environ["THREADS"])})
QUERIES = backward_windows(), regressions()


def compute(indexes):
    # Sums keep more digits of y around 0, and of i around 0.
    level = np.full_like(indexes, indexes.mean())
    i = np.arange(len(indexes)) - len(indexes) // 2
    bars = {"i": i, "p": indexes, "y": indexes - level, "level": level}  # DuckDB finds it by its name
    for query in QUERIES:
        results = CONNECTION.execute(query).fetchnumpy()
        yield {name: np.ma.filled(column, np.nan) for name, column in results.items()}


serve(compute)
