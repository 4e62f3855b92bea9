"""Runs the page's ways out, in this folder: ways_out.py ROUNDS

They are the files `NN title.py`, run in order and in one namespace, as one script; the first has what the others need. Then
each is run ROUNDS times more, right after a plain COPY of the same rows, and what it takes in terms of that is printed.
"""

import glob
import os
import statistics
import sys
import time

NAMESPACE = {}


def read(path):
    with open(path) as file:
        return compile(file.read(), path, "exec")


def seconds(run):
    """How long this takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def plain_copy():
    """Receives the rows as text and forgets them."""
    psycopg, uri, query = (NAMESPACE[name] for name in ("psycopg", "URI", "QUERY"))
    with psycopg.connect(uri) as connection, connection.cursor() as cursor:
        with cursor.copy(f"COPY ({query}) TO STDOUT") as blocks:
            for _block in blocks:
                pass


def main(rounds):
    first, *paths = sorted(glob.glob("*.py"))
    exec(read(first), NAMESPACE)
    ways = {os.path.basename(path)[3:-3]: read(path) for path in paths}
    for code in ways.values():
        exec(code, NAMESPACE)
    ratios = {title: [] for title in ways}
    for _ in range(rounds):
        for title, code in ways.items():
            copied = seconds(plain_copy)
            ratios[title].append(seconds(lambda: exec(code, NAMESPACE)) / copied)
    for title, seen in ratios.items():
        if len(seen) > 1:
            low, middle, high = statistics.quantiles(seen, method="inclusive")
            print(f"{title:28} {middle:.2f}   half of them from {low:.2f} to {high:.2f}")


main(int(sys.argv[1]))
