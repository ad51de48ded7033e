"""How many samples each data step takes: as many always, or fewer at first. Torch-free."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class BatchSizes(NamedTuple):
    """A batch that grows (Brown et al. 2020, GPT-3, appendix B), or never changes.

    `ramp`: (until data step, size) of each smaller batch, in rising order; then `final` holds.
    """

    final: int
    ramp: tuple[tuple[int, int], ...] = ()

    def at(self, step: int) -> int:
        """Samples of a data step."""
        return next((size for until, size in self.ramp if step < until), self.final)

    def first(self, step: int) -> int:
        """The global number of a data step's first sample: how many all before it took."""
        taken = begun = 0
        for until, size in self.ramp:
            taken += size * (min(until, step) - begun)
            begun = min(until, step)
        return taken + self.final * (step - begun)

    def steps(self, samples: int) -> int:
        """Data steps that so many samples last for, the last of them whole."""
        begun = 0
        for until, size in self.ramp:
            if samples < size * (until - begun):
                return begun + samples // size
            samples -= size * (until - begun)
            begun = until
        return begun + samples // self.final


def rises(sizes: BatchSizes) -> bool:
    """Whether steps and sizes of a ramp rise, up to the final size."""
    return _rise([0, *(until for until, _ in sizes.ramp)]) and _rise(
        [*(size for _, size in sizes.ramp), sizes.final]
    )


def _rise(numbers: Sequence[int]) -> bool:
    return all(one < other for one, other in pairwise(numbers))
