"""Records TA-Lib's candlestick patterns of simulated candles in data/candlesticks.csv.

Run with TA-Lib >= 0.6 from PyPI: python record_candlesticks.py

Three series: "shapes" of prices with many digits, where no size equals its limit; "steady" ones, whole numbers and of
one range for the most part, where sizes often equal their limits and which of them count is seen; and "limits" that those
seldom meet. Sums of all are exact, so that it does not matter how they are come by.
"""

import csv
import random
from collections import Counter
from pathlib import Path

import numpy as np
from talib import abstract

# our names in the order of the columns, and TA-Lib's
PATTERNS = {
    "doji": "DOJI",
    "hammer": "HAMMER",
    "inverted_hammer": "INVERTEDHAMMER",
    "hanging_man": "HANGINGMAN",
    "shooting_star": "SHOOTINGSTAR",
    "engulfing": "ENGULFING",
    "harami": "HARAMI",
    "piercing": "PIERCING",
    "dark_cloud_cover": "DARKCLOUDCOVER",
    "morning_star": "MORNINGSTAR",
    "evening_star": "EVENINGSTAR",
    "three_white_soldiers": "3WHITESOLDIERS",
    "three_black_crows": "3BLACKCROWS",
}
PRICES = ("open", "high", "low", "close")


class Simulation:
    """Candles near the limits of each pattern's definition, on either side, and any others between them."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def around(self, size):
        return size * self.rng.uniform(0.6, 1.4)

    def small(self):
        """Seldom, a shadow that is no longer as good as none."""
        return self.rng.uniform(0, 0.14)

    def sometimes(self, size):
        return self.around(size) if self.rng.random() < 0.7 else 0

    # Each shape is a list of (open, close, shadow above, shadow below) from a first price of 0, in units of a usual range,
    # drawn for rising prices; upside down it is the bearish one.

    def any_candle(self):
        return [(self.rng.gauss(0, 0.1), self.rng.gauss(0, 0.7), self.around(0.2), self.around(0.2))]

    def doji(self):
        return [(0, self.rng.gauss(0, 0.1), self.around(0.5), self.around(0.5))]

    def long_shadow(self):
        """A short body below a black candle, with a shadow on either side."""
        gap = self.rng.uniform(-0.1, 0.3)
        body = self.rng.gauss(0, 0.25)
        shadows = [self.small(), self.around(0.7)]
        self.rng.shuffle(shadows)
        first = -self.around(0.8)
        low = self.small()
        return [(0, first, self.small(), low), (first - low - gap, first - low - gap + body, *shadows)]

    def engulfing(self):
        first = -self.around(0.5)
        return [
            (0, first, self.around(0.1), self.around(0.1)),
            (first - self.sometimes(0.2), self.sometimes(0.2), self.around(0.1), self.around(0.1)),
        ]

    def harami(self):
        first = -self.around(1.0)
        ends = [first + self.sometimes(0.2), -self.sometimes(0.2)]
        self.rng.shuffle(ends)
        return [(0, first, self.around(0.1), self.around(0.1)), (*ends, self.around(0.1), self.around(0.1))]

    def piercing(self):
        first, shadow = -self.around(1.1), self.small()
        opened = first - shadow - self.rng.uniform(-0.02, 0.2)
        return [
            (0, first, self.small(), shadow),
            (opened, first * self.rng.uniform(-0.1, 0.6), self.small(), self.small()),
        ]

    def star(self):
        first = -self.around(1.0)
        gap = first - self.rng.uniform(-0.03, 0.3)
        star = gap - self.around(0.15)
        return [
            (0, first, self.small(), self.small()),
            (*self.rng.sample([gap, star], 2), self.around(0.2), self.around(0.2)),
            (star, first * self.rng.uniform(-0.2, 0.9), self.small(), self.small()),
        ]

    def three(self):
        """Something black, then three white candles."""
        candles = [(0, -self.around(0.3), self.around(0.1), self.small())]
        opened, closed = -self.rng.uniform(0.1, 0.3), self.around(0.6)
        for _ in range(3):
            candles.append((opened, closed, self.rng.uniform(0, 0.1), self.small()))
            opened = closed + self.rng.uniform(-0.5, 0.15)
            closed = max(opened + self.around(0.6), closed + self.rng.uniform(-0.02, 0.5))
        return candles

    def shapes(self, length):
        """Rows of four prices."""
        kinds = [self.doji, *[self.long_shadow] * 3, self.engulfing, self.harami]
        kinds += [self.piercing, *[self.star] * 2, *[self.three] * 2, *[self.any_candle] * 2]
        unit, level = 1 / 3000, 1.1
        rows = []
        while len(rows) < length:
            side = self.rng.choice([1, -1])
            for opened, closed, *shadows in self.rng.choice(kinds)():
                ends = [round(level + side * unit * end, 11) for end in (opened, closed)]
                above, below = shadows[::side]
                high, low = round(max(ends) + unit * above, 11), round(min(ends) - unit * below, 11)
                rows.append((ends[0], high, low, ends[1]))
            level = ends[1] + self.rng.choice([0, unit * self.rng.gauss(0, 0.3)])
        return np.array(rows[:length])

    def steady(self, length):
        """Rows of four prices: bodies and shadows of 20 in all, mostly, beginning near some price of the candle before."""
        rows = [(500, 510, 490, 500)]
        side, marching = 1, 0
        while len(rows) < length:
            few = self.rng.randint(0, 3)
            opened = self.rng.choice(rows[-1]) + self.rng.randint(-5, 5)
            if marching:
                marching -= 1
                body = self.rng.choice([20, 18, 17, 16, 9, 8, 7])
                few = self.rng.choice([0, 0, 1, 1, 2])
                shadows = [few, 20 - body - few]
                opened = rows[-1][3] + side * self.rng.choice([5, 4, 3, 0, -1, -2, -4, -16, -17, -18])
            else:
                side = self.rng.choice([1, -1])
                body = self.rng.choice([20 - few - self.rng.randint(0, 3), self.rng.randint(0, 12), self.rng.randint(0, 3)])
                shadows = self.rng.sample([few, 20 - body - few], 2)
            above, below = (max(0, shadow) for shadow in shadows[::side])
            stray = self.rng.choice([0] * 30 + [20])
            ends = (opened, opened + side * body)
            rows.append((ends[0], max(ends) + above + stray, min(ends) - below, ends[1]))
            if not marching and self.rng.random() < 0.2:
                side, marching = -side, 3
        return np.array(rows, dtype=float)


# Open, high, low and close. After such ones a body is long above 10 and short below, a shadow is as good as none below 2,
# near is 4 and far 12.
USUAL = (0, 15, -5, 10)
WIDE = (0, 100, -100, 10)

# A pattern's candles at a limit, after so many usual ones or those given; the next one is beyond it, for most.
LIMITS = [
    [(-5, 5, -20, 5)],  # the body under no shadow
    [(-4, 5, -20, 5)],
    [(-9, -1, -17, -1)],  # the shadow under it
    [(-9, -1, -17.25, -1)],
    [(-11, 15, -11, -1)],  # the body under a shadow
    [(-10, 15, -10, -1)],
    [(20, 20, 0, 0), (-10, 10, -10, 10)],  # half of the body before
    [(20, 20, 0, 0), (-10, 11, -10, 11)],
    [(20, 20, 0, 0), (-6, -4, -6, -4), (-6, 6, -6, 6)],  # three tenths of the body before a star
    [(20, 20, 0, 0), (-6, -4, -6, -4), (-6, 7, -6, 7)],
    [(20, 20, 0, 0), (-6, -4, -6, -4), (25, 25, 7, 7)],  # the colour after a star
    [(20, 20, 0, 0), (-5, -5, -5, -5), (-3, 7, -3, 7)],  # the body after a star
    [(20, 20, 0, 0), (-5, -5, -5, -5), (-4, 7, -4, 7)],
    [(0, 10, 0, 10), (5, 15, 5, 15), (10, 20, 10, 20)],  # the third soldier's body
    [(0, 10, 0, 10), (5, 15, 5, 15), (9, 20, 9, 20)],
    [(0, 10, 0, 10), (0, 15, 0, 15), (9, 20, 9, 20)],  # where the second one opens
    [(0, 10, 0, 10), (1, 15, 1, 15), (9, 20, 9, 20)],
    [WIDE, *[USUAL] * 5, (0, 20, 0, 20), (14, 22, 14, 22), (20, 34, 20, 34)],  # far shorter than the first
    [WIDE, *[USUAL] * 5, (0, 20, 0, 20), (13, 22, 13, 22), (20, 34, 20, 34)],
    [(30, 30, 15, 15), (20, 20, 10, 10), (12, 12, 5, 5)],  # the high before the first crow
    [(30, 30, 14, 14), (20, 20, 10, 10), (12, 12, 5, 5)],
]


def limits():
    """Rows of four prices: all that is in LIMITS, and the same upside down."""
    rows = [candle for case in LIMITS for candle in [USUAL] * 13 + case]
    rows += [(-opened, -low, -high, -closed) for opened, high, low, closed in rows]
    return np.array(rows, dtype=float)


def patterns(prices):
    """TA-Lib's values, one list per pattern; None in its lookback."""
    inputs = dict(zip(PRICES, prices.T.copy()))
    found = {}
    for name, function in PATTERNS.items():
        function = abstract.Function("CDL" + function)
        values = function(inputs).tolist()
        found[name] = [None] * function.lookback + values[function.lookback :]
    return found


def check(found, least):
    """Each pattern, and each value it can take, must occur so often."""
    for name, values in found.items():
        counts = Counter(values)
        expected = {0, -100 if -100 in counts else 100}
        if name in ("engulfing", "harami"):
            expected = {0, 80, -80, 100, -100}
        assert all(counts[value] >= least for value in expected), (name, counts)
        print(name, {value: count for value, count in counts.items() if value})


def main():
    rows = [("series", *PRICES, *PATTERNS)]
    series = [
        ("shapes", Simulation(21).shapes(2200), 20),
        ("steady", Simulation(32).steady(3000), 10),
        ("limits", limits(), 0),
    ]
    for name, prices, least in series:
        print(name)
        found = patterns(prices)
        check(found, least)
        prices = [[repr(price).removesuffix(".0") for price in row] for row in prices.tolist()]
        rows += [(name, *row, *values) for row, values in zip(prices, zip(*found.values()))]
    with open(Path(__file__).parent / "data" / "candlesticks.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
