"""Both families with polars: rolling sums and extrema, and expressions of these.

They are computed step by step, each step from the columns of those before, so that nothing is computed twice. Rolling
windows end at a bar and ours at the one before, hence the shift.
"""

import polars as pl

from months import AGG_METRICS, BQX_METRICS, BQX_WINDOWS, REG_METRICS, REG_WINDOWS, serve

p, y, i = pl.col("p"), pl.col("y"), pl.col("i")


def backward_windows(bars):
    rolled = bars.with_columns(
        expression.shift(1).alias(f"{name}{w}")
        for w in BQX_WINDOWS
        for name, expression in {
            "maximum": p.rolling_max(w),
            "minimum": p.rolling_min(w),
            "mean": p.rolling_mean(w),
            "deviation": p.rolling_std(w, ddof=1),
            "oldest": p.shift(w - 1),
        }.items()
    )

    def metrics(w):
        maximum, minimum, mean, deviation, oldest = (
            pl.col(f"{name}{w}") for name in ("maximum", "minimum", "mean", "deviation", "oldest")
        )
        return {
            "return": w * (mean - p) / p,
            "max_index": maximum,
            "min_index": minimum,
            "avg_index": mean,
            "stdev_index": deviation,
            "endpoint": (oldest - p) / p,
            "range": (maximum - minimum) / p,
            "volatility": deviation / p,
        }

    columns = [metrics(w)[metric].alias(f"w{w}_bqx_{metric}") for w in BQX_WINDOWS for metric in BQX_METRICS]
    return rolled.select(*columns, *(metrics(75)[metric].alias(f"agg_bqx_{metric}") for metric in AGG_METRICS))


def regressions(bars, level):
    rolled = bars.with_columns(iy=i * y, iiy=i * i * y).with_columns(
        expression.shift(1).alias(f"{name}{w}")
        for w in REG_WINDOWS
        for name, expression in {
            "sum": y.rolling_sum(w),
            "sum_iy": pl.col("iy").rolling_sum(w),
            "sum_iiy": pl.col("iiy").rolling_sum(w),
            "variance": p.rolling_var(w, ddof=0),
            "oldest": p.shift(w - 1),
        }.items()
    )

    # With u = i - (the i of the window's middle), Σu = 0: y = mean + slope * u + a * (u² - Σu²/W). Constants first.
    def end(w):
        return (w - 1) / 2

    def uu(w):
        return (w * w - 1) / 12  # Σu²/W

    def qq(w):
        return (w * w - 1) * (w * w - 4) / 180  # Σ(u² - Σu²/W)²/W

    def coefficients(w):
        middle = i - (w + 1) / 2
        mean, iy, iiy = (pl.col(f"{name}{w}") / w for name in ("sum", "sum_iy", "sum_iiy"))
        return {
            "mean": level + mean,
            "slope": (iy - middle * mean) / uu(w),
            "a": (iiy - 2 * middle * iy + (middle * middle - uu(w)) * mean) / qq(w),
        }

    fitted = rolled.with_columns(
        expression.alias(f"{name}{w}") for w in REG_WINDOWS for name, expression in coefficients(w).items()
    )
    summed = fitted.with_columns(
        expression.alias(f"{name}{w}")
        for w in REG_WINDOWS
        for mean, slope, a in [(pl.col(f"mean{w}"), pl.col(f"slope{w}"), pl.col(f"a{w}"))]
        for name, expression in {
            "yhat_end": mean + slope * end(w) + a * (end(w) ** 2 - uu(w)),
            "residual": (pl.col(f"variance{w}") - slope * slope * uu(w) - a * a * qq(w)).clip(0),
        }.items()
    )

    def metrics(w):
        mean, slope, a, variance, residual, yhat_end, oldest = (
            pl.col(f"{name}{w}")
            for name in ("mean", "slope", "a", "variance", "residual", "yhat_end", "oldest")
        )
        r2 = pl.when(variance > 0).then(1 - residual / variance).when(variance.is_not_null()).then(1.0)
        return {
            "a": a,
            "b": slope - 2 * a * end(w),
            "c": mean - slope * end(w) + a * (end(w) ** 2 - uu(w)),
            "r2": r2,
            "rmse": residual.sqrt(),
            "yhat_end": yhat_end,
            "resid_end": p.shift(1) - yhat_end,
            "slope_end": slope + 2 * a * end(w),
            "endpoint": (p - oldest) / oldest,
        }

    return summed.select(metrics(w)[m].alias(f"w{w}_reg_{m}") for w in REG_WINDOWS for m in REG_METRICS)


def compute(indexes):
    level = indexes.mean()
    # Sums keep more digits of y around 0, and of i around 0.
    bars = pl.DataFrame({"p": indexes}).with_columns(y=p - level, i=pl.int_range(pl.len()) - pl.len() / 2)
    for frame in (backward_windows(bars), regressions(bars, level)):
        yield {column.name: column.to_numpy() for column in frame}


serve(compute)
