"""Compares a derived table with its formulas: numpy_reference.py numpy|fractions COLUMNS M1 TABLE

M1 and TABLE are binary COPY files: M1's rate_index, and the table's columns, both in the order of time. Prints how many
values agree, or the first that do not and fails.
"""

import array
import math
import random
import struct
import sys
from fractions import Fraction

COPY_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
AGG_WINDOW = 75

# What one stored number may differ by from the exact one, relatively; the contract promises it of these.
BQX_TOLERANCE = Fraction(1, 10**13)
# The curve of a fit, in parts of (max - min), on top of one unit in the last place.
CURVE_TOLERANCE = Fraction(1, 10**12)


def rows_of(path, columns):
    """The rows of a binary COPY file of double precision columns, as tuples with None for NULL."""
    with open(path, "rb") as file:
        data = file.read()
    if not data.startswith(COPY_SIGNATURE):
        sys.exit(f"{path} is no binary COPY file")
    position = len(COPY_SIGNATURE) + 8 + struct.unpack_from(">i", data, len(COPY_SIGNATURE) + 4)[0]
    full_row = struct.Struct(">h" + columns * "id")
    rows = []
    while struct.unpack_from(">h", data, position)[0] != -1:
        if position + full_row.size <= len(data):
            fields = full_row.unpack_from(data, position)
            if all(length == 8 for length in fields[1::2]):
                rows.append(fields[2::2])
                position += full_row.size
                continue
        row = []
        position += 2
        for _ in range(columns):
            (length,) = struct.unpack_from(">i", data, position)
            position += 4
            row.append(struct.unpack_from(">d", data, position)[0] if length == 8 else None)
            position += max(length, 0)
        rows.append(tuple(row))
    return rows


def window_and_metric(column):
    """w15_bqx_max_index -> (15, 'max'), agg_bqx_range -> (75, 'range'), w60_reg_a -> (60, 'a')."""
    head, _family, metric = column.split("_", 2)
    return (AGG_WINDOW if head == "agg" else int(head[1:])), metric.removesuffix("_index")


class Findings:
    """Values that agree are counted, others are told."""

    def __init__(self):
        self.agreeing = 0
        self.wrong = []

    def check(self, holds, *what):
        if holds:
            self.agreeing += 1
        else:
            self.wrong.append(" ".join(map(str, what)))

    def end(self):
        if self.wrong or not self.agreeing:
            sys.exit(f"{len(self.wrong)} values differ, {self.agreeing} agree\n" + "\n".join(self.wrong[:20]))
        print(f"{self.agreeing} values agree")


def compare_with_numpy(columns, p, table):
    """Every row, every column, within 1e-9; by blocks, since a window's copy of a long series is large."""
    import numpy as np
    from numpy.lib.stride_tricks import sliding_window_view

    findings = Findings()
    p = np.array(p)
    table = np.array([[math.nan if v is None else v for v in row] for row in table])
    if not np.array_equal(table[:, columns.index("rate_index")], p):
        findings.check(False, "rate_index is not that of M1")
    for at, column in enumerate(columns):
        if column == "rate_index":
            continue
        w, metric = window_and_metric(column)
        stored = table[:, at]
        nulls = np.isnan(stored)
        if nulls[w:].any() or not nulls[:w].all():
            findings.check(False, column, "is NULL elsewhere than in the first", w, "rows")
            continue
        for start in range(w, len(p), 20_000):
            now = p[start : start + 20_000]
            past = sliding_window_view(p[start - w : start + len(now) - 1], w)
            value = {
                "return": lambda: ((past - now[:, None]) / now[:, None]).sum(axis=1),
                "max": lambda: past.max(axis=1),
                "min": lambda: past.min(axis=1),
                "avg": lambda: past.mean(axis=1),
                "stdev": lambda: past.std(axis=1, ddof=1),
                "endpoint": lambda: (past[:, 0] - now) / now,
                "range": lambda: (past.max(axis=1) - past.min(axis=1)) / now,
                "volatility": lambda: past.std(axis=1, ddof=1) / now,
            }[metric]()
            # numpy rounds each quotient: a sum near 0 has no digits left of its own
            floor = 1e-15 * w if metric == "return" else 1e-15
            off = np.abs(stored[start : start + len(now)] - value) > 1e-9 * np.abs(value) + floor
            findings.agreeing += int((~off).sum())
            for i in np.flatnonzero(off)[:3]:
                findings.check(False, column, "row", start + i, "stored", stored[start + i], "numpy", value[i])
    findings.end()


def is_near(stored, exact, tolerance):
    """Within a relative tolerance; exact values below the doubles' range need not be kept."""
    return abs(Fraction(stored) - exact) <= tolerance * abs(exact)


def square_root(x):
    """The square root of a fraction to about 40 digits, as a fraction."""
    scale = 10**80
    return Fraction(math.isqrt(x.numerator * scale // x.denominator), 10**40)


def exact_bqx(metric, past, now):
    w = len(past)
    if metric in ("stdev", "volatility"):
        total = sum(past)
        variance = (w * sum(v * v for v in past) - total * total) / (w * (w - 1))
        return square_root(variance) / (now if metric == "volatility" else 1)
    return {
        "return": lambda: (sum(past) - w * now) / now,
        "max": lambda: max(past),
        "min": lambda: min(past),
        "avg": lambda: sum(past) / w,
        "endpoint": lambda: (past[0] - now) / now,
        "range": lambda: (max(past) - min(past)) / now,
    }[metric]()


def exact_fit(past):
    """Coefficients a, b, c of the least-squares parabola over x = 0 .. W-1, SSres and SStot; by the orthogonal
    polynomials of u = 2x - (W-1): 1, u, u^2 - (W^2-1)/3."""
    w = len(past)
    us = range(1 - w, w, 2)
    middle = Fraction(w * w - 1, 3)
    total = sum(past)
    first = sum(u * v for u, v in zip(us, past))
    second = sum(u * u * v for u, v in zip(us, past)) - middle * total
    norm1 = sum(u * u for u in us)
    norm2 = sum((u * u - middle) ** 2 for u in us)
    mean, slope, bend = total / w, first / norm1, second / norm2
    # mean + slope * u + bend * (u^2 - middle), with u = 2x - (w-1)
    m = w - 1
    a = 4 * bend
    b = 2 * slope - 4 * m * bend
    c = mean - m * slope + bend * (m * m - middle)
    ss_tot = sum(v * v for v in past) - total * total / w
    ss_res = ss_tot - first * first / norm1 - second * second / norm2
    return a, b, c, ss_res, ss_tot


def curve_holds(stored, exact, past):
    """Whether the stored parabola stays within the contract's distance at every x of the window. The difference of two
    parabolas is one, too: it is farthest at an end or beside its vertex."""
    w = len(past)
    da, db, dc = (Fraction(s) - e for s, e in zip(stored, exact))
    places = {0, w - 1}
    if da:
        vertex = math.floor(-db / (2 * da))
        places |= {x for x in (vertex, vertex + 1) if 0 <= x < w}
    spread = max(past) - min(past)
    a, b, c = exact
    return all(
        abs((da * x + db) * x + dc)
        <= CURVE_TOLERANCE * spread + Fraction(math.ulp(float((a * x + b) * x + c)))
        for x in places
    )


def compare_reg_row(findings, i, w, past, now, stored):
    a, b, c, ss_res, ss_tot = exact_fit(past)
    x = w - 1
    yhat = (a * x + b) * x + c
    what = ("row", i, "window", w)
    findings.check(curve_holds((stored["a"], stored["b"], stored["c"]), (a, b, c), past), "curve", *what)
    r2 = 1 - ss_res / ss_tot if ss_tot else Fraction(1)
    findings.check(abs(Fraction(stored["r2"]) - r2) <= Fraction(1, 10**12), "r2", *what, stored["r2"], float(r2))
    others = {
        "a": a,
        "b": b,
        "c": c,
        "rmse": square_root(ss_res / w),
        "yhat_end": yhat,
        "resid_end": past[-1] - yhat,
        "slope_end": 2 * a * x + b,
        "endpoint": (now - past[0]) / past[0],
    }
    for metric, exact in others.items():
        near = is_near(stored[metric], exact, BQX_TOLERANCE)
        findings.check(near, metric, *what, "stored", stored[metric], "exact", float(exact))


def compare_with_fractions(columns, p, table):
    """Rows chosen at random, and those where something begins; some hundred for each window."""
    findings = Findings()
    chosen = random.Random(20240701)
    by_window = {}
    for at, column in enumerate(columns):
        if column != "rate_index":
            w, metric = window_and_metric(column)
            by_window.setdefault((w, column.startswith("agg")), {})[metric] = at
    for (w, _is_agg), metrics in by_window.items():
        is_reg = "slope_end" in metrics
        random_rows = chosen.sample(range(w, len(p)), 150 if w > 300 else 300)
        for i in sorted({w, w + 1, len(p) - 1, *random_rows}):
            past = [Fraction(v) for v in p[i - w : i]]
            now = Fraction(p[i])
            stored = {metric: table[i][at] for metric, at in metrics.items()}
            if None in stored.values():
                findings.check(False, "NULL in row", i, "of window", w)
            elif is_reg:
                compare_reg_row(findings, i, w, past, now, stored)
            else:
                for metric, value in stored.items():
                    exact = exact_bqx(metric, past, now)
                    near = is_near(value, exact, 0 if metric in ("max", "min") else BQX_TOLERANCE)
                    findings.check(near, metric, "row", i, "window", w, "stored", value, "exact", float(exact))
    findings.end()


def main():
    how, columns, m1, table = sys.argv[1:]
    columns = columns.split(",")
    p = array.array("d", (row[0] for row in rows_of(m1, 1)))
    table = rows_of(table, len(columns))
    if len(table) != len(p):
        sys.exit(f"{len(table)} rows, {len(p)} bars")
    {"numpy": compare_with_numpy, "fractions": compare_with_fractions}[how](columns, p, table)


if __name__ == "__main__":
    main()
