"""What a run can tell a sink."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch

_BINS = 64
_AT_ONCE = 1 << 22  # values: an embedding of a billion is never copied whole


class Histogram(NamedTuple):
    """How the values of one tensor are spread; those that are not finite are left out."""

    edges: list[float]  # of the bins: one more than counts
    counts: list[int]
    sum: float
    sum_squares: float

    @classmethod
    def of(cls, values: torch.Tensor) -> "Histogram":
        """Bins of equal width from the least to the greatest value, counted on the device."""
        flat = values.detach().flatten()
        low, high, count, total, squares = math.inf, -math.inf, 0, 0.0, 0.0
        for part in _finite_parts(flat):
            low, high = min(low, float(part.min())), max(high, float(part.max()))
            count += len(part)
            total, squares = total + float(part.sum()), squares + float(part.square().sum())
        if low >= high:  # one value, or none
            value = low if count else 0.0
            return cls([value, value], [count], total, squares)
        edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64, device=flat.device)
        counts = torch.zeros(_BINS, dtype=torch.int64, device=flat.device)
        for part in _finite_parts(flat):
            counts += torch.bincount(torch.bucketize(part, edges[1:-1]), minlength=_BINS)
        return cls(edges.tolist(), counts.tolist(), total, squares)


def _finite_parts(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    for start in range(0, len(flat), _AT_ONCE):
        wide = flat[start : start + _AT_ONCE].double()
        finite = wide[wide.isfinite()]
        if len(finite):
            yield finite


class Sink(Protocol):
    """A place that the numbers of a run go to as well. Main rank only."""

    def rewind(self, step: int) -> None:
        """The run goes on after this step: what came after it will be told again."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one record."""

    def text(self, step: int, name: str, text: str) -> None:
        """Take a text, such as a sample."""

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """Take how the values of a parameter are spread."""

    def close(self) -> None:
        """Write what is left."""
