"""Which source each global sample comes from: a fixed table of slots, repeated block by block."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.errors import EXIT_BAD_INPUT, UserError

_BLOCK = 1 << 16
Ints = npt.NDArray[np.int64]


class Mixture:
    """Assigns sample g to (source, index within the source) in O(1).

    Every block of 65,536 samples holds each source in proportion to its weight, rounded to a
    whole number of samples, spread as evenly as possible; a source's own index advances by one.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        shares = np.asarray(weights, dtype=np.float64)
        if not len(shares) or not np.all(np.isfinite(shares)) or np.any(shares <= 0):
            raise UserError(
                f"mixture weights must be positive numbers, got {list(weights)}",
                status=EXIT_BAD_INPUT,
            )
        shares = shares / shares.sum() * _BLOCK
        self.counts: Ints = np.floor(shares).astype(np.int64)
        largest_rest = np.argsort(self.counts - shares, kind="stable")
        self.counts[largest_rest[: _BLOCK - int(self.counts.sum())]] += 1
        if np.any(self.counts == 0):
            raise UserError(
                f"a mixture weight is below 1/{_BLOCK} of the whole: {list(weights)}",
                status=EXIT_BAD_INPUT,
            )
        # The k-th of a source's n slots belongs at (k + 1/2) / n of the block.
        sources = np.repeat(np.arange(len(shares)), self.counts)
        ranks = np.concatenate([np.arange(count) for count in self.counts])
        order = np.argsort((ranks + 0.5) / self.counts[sources], kind="stable")
        self._sources, self._ranks = sources[order], ranks[order]

    def locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """Source and own index of each global sample. (n,) → (n,), (n,)"""
        block, slot = np.divmod(samples, _BLOCK)
        source: Ints = self._sources[slot]
        return source, block * self.counts[source] + self._ranks[slot]

    def consumed(self, samples: int) -> list[int]:
        """How many of the first `samples` global samples each source gave."""
        block, slot = divmod(samples, _BLOCK)
        partial = np.bincount(self._sources[:slot], minlength=len(self.counts))
        return [int(n) for n in block * self.counts + partial]
