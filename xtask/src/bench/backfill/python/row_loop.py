"""The old way: one row after the other in Python, its windows with numpy, rows sent with psycopg2's executemany.

Only the month's last rows are made, as many as are asked for: at this pace a month takes many minutes.
"""

import numpy as np
import psycopg2

from months import BQX_WINDOWS, REG_WINDOWS, bars_query, converse


def backward_windows(p, t):
    values = []
    for window in BQX_WINDOWS:
        if t < window:
            values += [None] * 6
            continue
        past = p[t - window : t]
        values += [
            ((past - p[t]) / p[t]).sum(),
            past.max(),
            past.min(),
            past.mean(),
            past.std(ddof=1),
            (past[0] - p[t]) / p[t],
        ]
    if t < BQX_WINDOWS[-1]:
        return values + [None] * 7
    # The last window's once more.
    total, maximum, minimum, mean, deviation, _ = values[-6:]
    return values + [total, maximum, minimum, mean, deviation, (maximum - minimum) / p[t], deviation / p[t]]


def regressions(p, t):
    values = []
    for window in REG_WINDOWS:
        if t < window:
            values += [None] * 9
            continue
        past = p[t - window : t]
        x = np.arange(window)
        a, b, c = np.polyfit(x, past, 2)
        residuals = past - np.polyval((a, b, c), x)
        ss_residual = (residuals**2).sum()
        ss_total = ((past - past.mean()) ** 2).sum()
        values += [
            a,
            b,
            c,
            1 - ss_residual / ss_total if ss_total > 0 else 1.0,
            np.sqrt(ss_residual / window),
            past[-1] - residuals[-1],
            residuals[-1],
            2 * a * (window - 1) + b,
            (p[t] - past[0]) / past[0],
        ]
    return values


def fill(connection, month):
    with connection.cursor() as cursor:
        cursor.execute(bars_query(month))
        bars = cursor.fetchall()
        times, p = [time for time, _ in bars], np.array([index for _, index in bars])
        for family, compute in (("bqx", backward_windows), ("reg", regressions)):
            rows = []
            for t in range(len(p) - month["sample"], len(p)):
                values = compute(p, t)
                rows.append([times[t], float(p[t]), *(None if value is None else float(value) for value in values)])
            # Of reg, created_at has its default.
            cursor.executemany(f"INSERT INTO {month[family]} VALUES ({', '.join(['%s'] * len(rows[0]))})", rows)


converse(psycopg2.connect(""), fill)
