"""What the Python contenders share: bars out of PostgreSQL, columns back into it, and the conversation with the benchmark.

The fastest ways we know of: numbers come and go in PostgreSQL's binary formats, which are arrays to numpy. Nothing is done
row by row, and no number becomes a Python object or text. (Writing so takes about half as long as ADBC's ingestion of Arrow
tables.)
"""

import json
import sys
from datetime import datetime, timezone

import numpy as np
import psycopg

BQX_WINDOWS = (15, 30, 45, 60, 75)
REG_WINDOWS = (60, 90, 150, 240, 390, 630)
LOOKBACK = max(BQX_WINDOWS + REG_WINDOWS)

BQX_METRICS = ("return", "max_index", "min_index", "avg_index", "stdev_index", "endpoint")
AGG_METRICS = ("return", "max_index", "min_index", "avg_index", "stdev_index", "range", "volatility")
REG_METRICS = ("a", "b", "c", "r2", "rmse", "yhat_end", "resid_end", "slope_end", "endpoint")

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
CHUNK = 1 << 18  # bytes that go to the server at once
EPOCH = datetime(2000, 1, 1, tzinfo=timezone.utc)


def serve(compute):
    """Answers the benchmark, which sends a month a line: reads its bars, has `compute` make the columns of both families
    of their indexes, stores these in new tables and commits.

    `compute` is given the month's indexes and those before it that windows need, and returns two dicts, from names of
    columns to arrays just as long, with NaN for NULL.
    """

    def fill(connection, month):
        times, indexes, lookback = read(connection, month)
        for family, columns in zip(("bqx", "reg"), compute(indexes)):
            columns = {"rate_index": indexes, **columns}
            write(connection, month[family], times[lookback:], {name: c[lookback:] for name, c in columns.items()})

    for _ in compute(np.linspace(99, 101, 10 * LOOKBACK)):
        pass  # the first time takes longest
    converse(psycopg.connect(), fill)


def converse(connection, fill):
    """Fills the tables of one month after the other."""
    print("ready", flush=True)
    for line in sys.stdin:
        month = json.loads(line)
        with connection.cursor() as cursor:
            cursor.execute(month["make_tables"])
            fill(connection, month)
            cursor.execute(month["add_keys"])
        connection.commit()
        print("done", flush=True)


def bars_query(month):
    """The month's bars and those before it that windows need."""
    return f"""
        SELECT time, rate_index FROM {month["bars"]}
         WHERE time < '{month["until"]}'
           AND time >= coalesce((SELECT time FROM {month["bars"]} WHERE time < '{month["from"]}'
                                  ORDER BY time DESC OFFSET {LOOKBACK - 1} LIMIT 1), '-infinity')
         ORDER BY time"""


def read(connection, month):
    """Times (in microseconds since 2000), indexes, and how many of them lie before the month."""
    # All times as one value, and all indexes: as rows, they would come one by one.
    query = f"""
        SELECT string_agg(timestamptz_send(time), ''), string_agg(float8send(rate_index), '')
          FROM ({bars_query(month)}) AS bars"""
    with connection.cursor(binary=True) as cursor:
        times, indexes = cursor.execute(query).fetchone()
    times, indexes = np.frombuffer(times, ">i8").astype("i8"), np.frombuffer(indexes, ">f8").astype("f8")
    start = (datetime.fromisoformat(month["from"]) - EPOCH).total_seconds() * 1_000_000
    return times, indexes, int(np.searchsorted(times, start))


def write(connection, table, times, columns):
    """Copies columns into a table that was made in this transaction; NaN becomes NULL."""
    names = ", ".join(["ts_utc", *columns])
    with connection.cursor() as cursor:
        with cursor.copy(f"COPY {table} ({names}) FROM STDIN (FORMAT binary, FREEZE)") as copy:
            copy.write(HEADER)
            for rows in records(times, columns):
                data = memoryview(rows).cast("B")
                for start in range(0, len(data), CHUNK):
                    copy.write(data[start : start + CHUNK])
            copy.write(TRAILER)


def records(times, columns):
    """The rows in the binary format: as many arrays as it takes for NULLs, which take no room, to be in the same columns
    within each.
    """
    present = ~np.isnan(np.stack(list(columns.values())))
    changes = np.flatnonzero((present[:, 1:] != present[:, :-1]).any(axis=0)) + 1
    bounds = [0, *changes.tolist(), len(times)]
    for start, end in zip(bounds, bounds[1:]):
        has_value = [True, *present[:, start].tolist()]
        rows = np.empty(end - start, row_type(has_value, ["ts_utc", *columns]))
        rows["fields"] = len(has_value)
        rows["size of ts_utc"], rows["ts_utc"] = 8, times[start:end]
        for name, column in columns.items():
            if name in rows.dtype.names:
                rows[f"size of {name}"], rows[name] = 8, column[start:end]
            else:
                rows[f"size of {name}"] = -1
        yield rows


def row_type(has_value, names):
    """A row of the binary format: the number of fields, and before each its size, -1 for NULL."""
    fields = [("fields", ">i2")]
    for number, (present, name) in enumerate(zip(has_value, names)):
        fields.append((f"size of {name}", ">i4"))
        if present:
            fields.append((name, ">i8" if number == 0 else ">f8"))
    return np.dtype(fields)
