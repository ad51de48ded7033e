"""Where numbers lie on an axis, and which of them stand beside it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


class Axis(NamedTuple):
    """A range of numbers on a stretch of a picture."""

    low: float
    high: float
    start: float  # where `low` lies, in the picture's units
    end: float
    is_log: bool = False

    def at(self, values: Floats) -> Floats:
        """Where values lie in the picture; NaN where they cannot (0 on a logarithmic axis)."""
        low, high = self.low, self.high
        if self.is_log:
            values = np.log10(np.where(values > 0, values, np.nan))
            low, high = math.log10(low), math.log10(high)
        share = (values - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """A few round numbers inside the range."""
        if self.is_log:
            return _log_ticks(self.low, self.high, most)
        step = _round_up((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def axis_of(lows: Sequence[float], highs: Sequence[float], start: float, end: float) -> Axis:
    """An axis on which all of them have room."""
    low, high = min(lows), max(highs)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    bottom = low - margin
    return Axis(0.0 if low >= 0 > bottom else bottom, high + margin, start, end)


def log_axis(lows: Sequence[float], highs: Sequence[float], start: float, end: float) -> Axis:
    """A logarithmic one; values of 0 and less have no place on it."""
    positive = [low for low in lows if low > 0]
    low = min(positive, default=0.1)
    high = max([high for high in highs if high > 0], default=1.0)
    return Axis(low / 1.3, max(high, low) * 1.3, start, end, is_log=True)


def _round_up(step: float) -> float:
    """The next of 1, 2, 2.5, 5 × 10ⁿ."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= step * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    factors = (1,) if decades >= most - 1 else (1, 3) if decades > 2 else (1, 2, 5)
    every = max(1, -(-decades // most))
    powers = range(first, last + 1, every)
    found = [f * 10.0**power for power in powers for f in factors]
    return [value for value in found if low <= value <= high]


def short(value: float) -> str:
    """A number for a narrow place: 1.5M, 300k, 0.002, 3e-05."""
    size = abs(value)
    for unit, letter in _UNITS:
        if size >= unit * (1 if unit > 1e3 else 10):
            return f"{value / unit:.4g}{letter}"
    if size and (size < 1e-3 or size >= 1e15):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+", "e").replace(".0e", "e")
    return f"{value:.4g}"
