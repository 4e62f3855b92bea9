"""Compares files with rows of the database: files_compared.py ROWS FILE...

ROWS is a binary COPY file after a line of `name:type,...`. Each value of each FILE (CSV, Parquet, or numpy's own with the
doubles alone) must be the same, to the bit, and NULL where it is; Parquet has types that fit. What is otherwise is told, and
fails.
"""

import csv
import struct
import sys
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COPY_HEADER = len(b"PGCOPY\n\xff\r\n\0") + 8
YEAR_2000 = datetime(2000, 1, 1, tzinfo=timezone.utc)
MICROS_FROM_1970_TO_2000 = 946_684_800_000_000
TYPES = {
    "float8": [pa.float64()],
    "timestamptz": [pa.timestamp("us", "UTC")],
    "text": [pa.string(), pa.large_string()],
}


def copied_rows(data):
    """The rows of binary COPY, each as its fields' bytes, None for NULL."""
    position = COPY_HEADER
    while (count := struct.unpack_from(">h", data, position)[0]) != -1:
        position += 2
        row = []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", data, position)
            position += 4
            row.append(data[position : position + length] if length >= 0 else None)
            position += max(length, 0)
        yield row


def copied_columns(path):
    """By name: the type, where there is a value, and all that are, one after the other, as PostgreSQL sends them."""
    with open(path, "rb") as file:
        header, data = file.read().split(b"\n", 1)
    columns = {}
    for column, values in zip(header.decode().split(","), zip(*copied_rows(data)), strict=True):
        name, kind = column.split(":")
        present = np.array([value is not None for value in values])
        columns[name] = (kind, present, b"".join(value for value in values if value is not None))
    return columns


def micros_since_2000(text):
    return (datetime.fromisoformat(text) - YEAR_2000) // timedelta(microseconds=1)


def require_names(path, names, kinds):
    if names != list(kinds):
        sys.exit(f"{path} has other columns")


def from_csv(path, kinds):
    """The columns of a CSV file, read without any of the libraries that wrote others."""
    read = {"float8": float, "timestamptz": micros_since_2000, "text": str}
    with open(path, newline="") as file:
        names, *rows = csv.reader(file)
    require_names(path, names, kinds)
    columns = {}
    for name, texts in zip(names, zip(*rows, strict=True), strict=True):
        convert = read[kinds[name]]
        columns[name] = pa.array([convert(text) if text else None for text in texts])
    return columns


def from_parquet(path, kinds):
    table = pq.read_table(path)
    require_names(path, table.column_names, kinds)
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.type not in TYPES[kinds[name]]:
            sys.exit(f"{path}: {name} is of type {column.type}")
        if kinds[name] == "timestamptz":
            column = pa.array(column.cast(pa.int64()).to_numpy() - MICROS_FROM_1970_TO_2000)
        columns[name] = column
    return columns


def from_numpy(path, kinds):
    """The doubles; NULL is NaN."""
    names = [name for name, kind in kinds.items() if kind == "float8"]
    return {name: pa.array(values, from_pandas=True) for name, values in zip(names, np.load(path).T, strict=True)}


def as_sent(kind, column):
    """A column's values, in the same form."""
    if kind == "text":
        return "".join(column.drop_null().to_pylist()).encode()
    return column.drop_null().to_numpy().astype(">f8" if kind == "float8" else ">i8").tobytes()


def differing(expected, columns):
    """The columns that are not as expected."""
    for name, column in columns.items():
        kind, present, sent = expected[name]
        if not np.array_equal(column.is_valid(), present) or as_sent(kind, column) != sent:
            yield name


def main(rows, *paths):
    expected = copied_columns(rows)
    kinds = {name: column[0] for name, column in expected.items()}
    readers = {"csv": from_csv, "parquet": from_parquet, "npy": from_numpy}
    wrong = []
    for path in paths:
        columns = readers[path.rsplit(".", 1)[-1]](path, kinds)
        wrong += [f"{path}: {name} differs" for name in differing(expected, columns)]
    if wrong:
        sys.exit("\n".join(wrong))


main(*sys.argv[1:])
