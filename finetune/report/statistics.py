"""Scores over seeds: mean, spread, and how sure a difference is. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Student's t: 97.5 % of the distribution with 1, 2, … degrees of freedom lies below.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Spread(NamedTuple):
    """A quantity over runs that differ in the seed."""

    mean: float
    std: float | None  # of the sample (n - 1); None: a single run has none
    min: float
    max: float
    n: int


class Difference(NamedTuple):
    """One way minus another, run by run with the same seed."""

    mean: float
    standard_error: float | None  # of the mean; None: a single pair has none
    interval: tuple[float, float] | None  # 95 %, Student's t
    positive: int  # seeds in which the first is the greater
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves zero out, else 0: nobody can tell."""
        if self.interval is None:
            return 0
        low, high = self.interval
        return 1 if low > 0 else -1 if high < 0 else 0


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation and range of at least one value."""
    count = len(values)
    mean = math.fsum(values) / count
    return Spread(mean, _deviation(values, mean), min(values), max(values), count)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Compare values by seed, over the seeds that both have; None where there is none.

    The runs of a seed share their examples: the paired difference is free of what these cause.
    """
    pairs = [first[seed] - second[seed] for seed in first if seed in second]
    if not pairs:
        return None
    count = len(pairs)
    mean = math.fsum(pairs) / count
    deviation = _deviation(pairs, mean)
    positive = sum(pair > 0 for pair in pairs)
    if deviation is None:
        return Difference(mean, None, None, positive, count)
    error = deviation / math.sqrt(count)
    margin = error * t_quantile(count - 1)
    return Difference(mean, error, (mean - margin, mean + margin), positive, count)


def t_quantile(freedom: int) -> float:
    """Student's 97.5 % quantile; beyond 30 degrees of freedom by Fisher's expansion."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _deviation(values: Sequence[float], mean: float) -> float | None:
    if len(values) < 2:
        return None
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
