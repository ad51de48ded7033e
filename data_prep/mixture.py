"""Which source each sample comes from: a fixed table of slots, repeated block by block."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from runtime.errors import EXIT_BAD_INPUT, UserError

BLOCK = 1 << 16
Ints = npt.NDArray[np.int64]


def apportion(weights: Sequence[float], per_weight: Sequence[float] | None = None) -> list[int]:
    """How many of a block's 65,536 samples come from each source.

    weights: of each source, 0 or more. per_weight: samples that a weight of 1 takes, where a
    weight is a share of something else than samples: with samples ÷ tokens of each source's epoch
    the weights are shares of the tokens. Rounded to whole samples by the largest remainder.

    Raises UserError where no weight is positive, or one is less than one sample of a block.
    """
    given = np.asarray(weights, dtype=np.float64)
    if not np.all(np.isfinite(given)) or np.any(given < 0) or not given.sum() > 0:
        raise UserError(
            f"mixture weights must be 0 or more, and one of them positive; got {list(weights)}",
            status=EXIT_BAD_INPUT,
        )
    shares = given if per_weight is None else given * np.asarray(per_weight)
    shares = shares / shares.sum() * BLOCK
    counts = np.floor(shares).astype(np.int64)
    largest_rest = np.argsort(counts - shares, kind="stable")
    counts[largest_rest[: BLOCK - int(counts.sum())]] += 1
    if np.any((counts == 0) & (given > 0)):
        raise UserError(
            f"a mixture weight is below 1/{BLOCK} of the samples: {list(weights)}",
            status=EXIT_BAD_INPUT,
        )
    return [int(count) for count in counts]


class Mixture:
    """Assigns sample g to (source, index within the source) in O(1).

    `counts`, which add up to 65,536, are each source's samples in a block. They are spread over
    the block as evenly as possible; a source's own index advances by one.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts: Ints = np.asarray(counts, dtype=np.int64)
        if self.counts.sum() != BLOCK or np.any(self.counts < 0):
            raise ValueError(f"the slots of a block must add up to {BLOCK}: {list(counts)}")
        # The k-th of a source's n slots belongs at (k + 1/2) / n of the block.
        sources = np.repeat(np.arange(len(counts)), self.counts)
        ranks = np.concatenate([np.arange(count) for count in self.counts])
        order = np.argsort((ranks + 0.5) / self.counts[sources], kind="stable")
        self._sources = sources[order].astype(np.int32)
        self._ranks = ranks[order].astype(np.int32)

    def locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """Source and own index of each sample. (n,) → (n,), (n,)"""
        block, slot = np.divmod(samples, BLOCK)
        source = self._sources[slot].astype(np.int64)
        return source, block * self.counts[source] + self._ranks[slot]

    def consumed(self, samples: int) -> list[int]:
        """How many of the first `samples` samples each source gave."""
        block, slot = divmod(samples, BLOCK)
        partial = np.bincount(self._sources[:slot], minlength=len(self.counts))
        return [int(n) for n in block * self.counts + partial]

    def place(self, source: int, own: int) -> int:
        """The sample that is a source's own'th, counted from 0."""
        block, rank = divmod(own, int(self.counts[source]))
        slot = np.flatnonzero((self._sources == source) & (self._ranks == rank))[0]
        return block * BLOCK + int(slot)


@lru_cache(maxsize=8)
def mixture_of(counts: tuple[int, ...]) -> Mixture:
    """The mixture of some counts; the last few are kept, half a megabyte each."""
    return Mixture(counts)
