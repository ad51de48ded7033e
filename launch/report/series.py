"""Quantities of a run, read once in constant memory: a bucket keeps the extremes of what it holds.

However long a run is, each quantity takes at most 2 × `MOST` buckets. While there are fewer values
than that, each has a bucket of its own and nothing is lost; later neighbours are joined, and their
least and greatest values stay, so that a spike of one step is to be seen among millions.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MOST = 1000
_AT_ONCE = 2048  # values that wait to be put into buckets
_TOLD = 20  # steps without a finite value that are named
Floats = npt.NDArray[np.float64]


class Points(NamedTuple):
    """A quantity, or a stretch of it, as arrays of one length."""

    steps: Floats  # the middle of each bucket
    tokens: Floats  # NaN where the records do not say
    low: Floats
    high: Floats
    mean: Floats
    counts: Floats  # values in each bucket

    @property
    def is_exact(self) -> bool:
        """Whether every value stands by itself."""
        return bool((self.counts == 1).all())


_FIELDS = len(Points._fields)
_STEPS, _TOKENS, _LOW, _HIGH, _SUM, _COUNT = range(_FIELDS)


class Curve:
    """One quantity, added value by value."""

    def __init__(self) -> None:
        self.count = 0  # finite values
        self.gaps = 0  # values that were not finite
        self.gap_steps: list[int] = []  # the first of them
        self.first = self.last = math.nan
        self.low, self.high = math.inf, -math.inf
        self.low_step = self.high_step = 0
        self._width = 1  # values in a bucket
        self._buckets = np.empty((2 * MOST, _FIELDS))  # sums of steps and tokens, not means
        self._used = 0
        self._pending: list[tuple[float, float, float]] = []

    def add(self, step: int, tokens: float, value: float | None) -> None:
        """Add a value; None and what is not finite are counted as gaps."""
        if value is None or not math.isfinite(value):
            self.gaps += 1
            if len(self.gap_steps) < _TOLD:
                self.gap_steps.append(step)
            return
        if not self.count:
            self.first = value
        self.count += 1
        self.last = value
        if value < self.low:
            self.low, self.low_step = value, step
        if value > self.high:
            self.high, self.high_step = value, step
        self._pending.append((step, tokens, value))
        if len(self._pending) >= max(_AT_ONCE, self._width):
            self._fill()

    def _fill(self) -> None:
        while len(self._pending) >= self._width:
            whole = min(len(self._pending) // self._width, len(self._buckets) - self._used)
            taken = np.array(self._pending[: whole * self._width])
            del self._pending[: whole * self._width]
            self._buckets[self._used : self._used + whole] = _joined(_single(taken), self._width)
            self._used += whole
            if self._used == len(self._buckets):
                self._buckets[:MOST] = _joined(self._buckets, 2)
                self._used, self._width = MOST, 2 * self._width

    def points(self, most: int = 2 * MOST) -> Points:
        """All buckets, joined until there are at most so many."""
        rest = np.array(self._pending).reshape(-1, 3)
        rows = self._buckets[: self._used]
        if len(rest):
            width = min(self._width, len(rest))
            whole = len(rest) // width * width
            parts = [_joined(_single(part), w) for part, w in _split(rest, whole, width)]
            rows = np.concatenate([rows, *parts])
        width = -(-len(rows) // most) if len(rows) else 1
        whole = len(rows) // width * width
        rows = np.concatenate([_joined(part, w) for part, w in _split(rows, whole, width)])
        counts = rows[:, _COUNT]
        return Points(
            rows[:, _STEPS] / counts,
            rows[:, _TOKENS] / counts,
            rows[:, _LOW],
            rows[:, _HIGH],
            rows[:, _SUM] / counts,
            counts,
        )

    @property
    def median(self) -> float:
        """Of the values, or of the means of the buckets where they were joined."""
        points = self.points()
        order = np.argsort(points.mean)
        below = np.cumsum(points.counts[order])
        middle = int(np.searchsorted(below, below[-1] / 2))
        return float(points.mean[order][middle])


def _split(rows: Floats, whole: int, width: int) -> list[tuple[Floats, int]]:
    """The rows that fill buckets of a width, and the rest as one bucket."""
    parts = [(rows[:whole], width)]
    if whole < len(rows):
        parts.append((rows[whole:], len(rows) - whole))
    return parts


def _single(values: Floats) -> Floats:
    """A bucket for each (step, tokens, value)."""
    rows = np.empty((len(values), _FIELDS))
    rows[:, _STEPS], rows[:, _TOKENS] = values[:, 0], values[:, 1]
    rows[:, _LOW] = rows[:, _HIGH] = rows[:, _SUM] = values[:, 2]
    rows[:, _COUNT] = 1
    return rows


def _joined(rows: Floats, width: int) -> Floats:
    """Each `width` neighbours as one bucket. (n, 6) → (n ÷ width, 6)"""
    if width == 1 or not len(rows):
        return rows
    grouped = rows.reshape(-1, width, _FIELDS)
    joined: Floats = grouped.sum(1)
    joined[:, _LOW] = grouped[:, :, _LOW].min(1)
    joined[:, _HIGH] = grouped[:, :, _HIGH].max(1)
    return joined
