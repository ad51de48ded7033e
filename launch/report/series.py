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
_LARGE, _SMALL = 1e100, 1e-100  # beyond them no axis can be divided; no run measures such
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
    """One quantity, added stretch by stretch."""

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
        self._open = np.empty((0, _FIELDS))  # one bucket that is not full yet, or none

    def add(self, step: int, tokens: float, value: float | None) -> None:
        """Add one value; None and what is not finite are counted as gaps."""
        self.add_all(np.array([[step, tokens, math.nan if value is None else value]]))

    def add_all(self, values: Floats) -> None:
        """Add (step, tokens, value) rows; what is too large to draw is a gap. (n, 3)"""
        size = np.abs(values[:, 2])
        is_finite = size < _LARGE  # and no NaN
        if (is_nothing := (size < _SMALL) & (size > 0)).any():
            values = values.copy()
            values[is_nothing, 2] = 0.0
        if not is_finite.all():
            steps = values[~is_finite, 0]
            self.gaps += len(steps)
            self.gap_steps += map(int, steps[: _TOLD - len(self.gap_steps)])
            values = values[is_finite]
        if not len(values):
            return
        if not self.count:
            self.first = float(values[0, 2])
        self.count += len(values)
        self.last = float(values[-1, 2])
        lowest, highest = int(values[:, 2].argmin()), int(values[:, 2].argmax())
        if values[lowest, 2] < self.low:
            self.low, self.low_step = float(values[lowest, 2]), int(values[lowest, 0])
        if values[highest, 2] > self.high:
            self.high, self.high_step = float(values[highest, 2]), int(values[highest, 0])
        self._fill(_single(values))

    def _fill(self, rows: Floats) -> None:
        while len(rows):
            held = int(self._open[0, _COUNT]) if len(self._open) else 0
            room = len(self._buckets) - self._used
            if not held and len(rows) >= self._width:
                taken = min(len(rows) // self._width, room) * self._width
                self._push(_joined(rows[:taken], self._width))
            else:
                taken = min(self._width - held, len(rows))
                both = np.concatenate([self._open, rows[:taken]])
                self._open = _joined(both, len(both))
                if held + taken == self._width:
                    self._push(self._open)
                    self._open = self._open[:0]
            rows = rows[taken:]

    def _push(self, rows: Floats) -> None:
        """Append full buckets; where there is no room for more, join all by twos."""
        self._buckets[self._used : self._used + len(rows)] = rows
        self._used += len(rows)
        if self._used == len(self._buckets):
            self._buckets[:MOST] = _joined(self._buckets, 2)
            self._used, self._width = MOST, 2 * self._width

    def points(self, most: int = 2 * MOST) -> Points:
        """All buckets, joined until there are at most so many."""
        rows = np.concatenate([self._buckets[: self._used], self._open])
        width = max(1, -(-len(rows) // most))
        whole = len(rows) // width * width
        parts = [_joined(rows[:whole], width)]
        if whole < len(rows):
            parts.append(_joined(rows[whole:], len(rows) - whole))
        rows = np.concatenate(parts)
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
