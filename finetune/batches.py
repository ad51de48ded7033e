"""Which examples make which step: a pure function of (seed, step), the same on any machine."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from runtime.seed import mix

Indices = npt.NDArray[np.int64]

# Batches are cut from so many batches' worth of examples sorted by length: most of the padding is
# saved, and the batches stay nearly as mixed as random ones.
_WINDOW_BATCHES = 16


@dataclass
class Plan:
    """The order of the training examples.

    The examples of a step don't depend on the number of ranks or the micro-batch size; these
    only decide who computes which of them.
    """

    lengths: Indices  # tokens of each example
    global_batch_size: int
    micro_batch_size: int
    seed: int
    _epoch: int = field(default=-1, init=False)
    _batches: list[Indices] = field(default_factory=list, init=False)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the examples; the last may be a smaller one."""
        return -(-len(self.lengths) // self.global_batch_size)

    def batch(self, step: int) -> Indices:
        """Return the examples of the step with this index (0-based), the longest first."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = np.random.default_rng(mix(self.seed, epoch))
            self._batches = epoch_batches(self.lengths, self.global_batch_size, generator)
            self._epoch = epoch
        return self._batches[index]

    def tokens(self, step: int) -> int:
        """Count the tokens of a step, without padding."""
        return int(self.lengths[self.batch(step)].sum())

    def micro_batches(self, step: int, rank: int, world_size: int) -> list[Indices]:
        """Return one rank's part of a step: each example is in one micro-batch of one rank.

        Empty where a last, smaller step has fewer micro-batches than there are ranks.
        """
        return pieces(self.batch(step), self.micro_batch_size)[rank::world_size]


def epoch_batches(
    lengths: Indices, batch_size: int, generator: np.random.Generator
) -> list[Indices]:
    """Draw the batches of one epoch, texts of like length together; a smaller one comes last."""
    order = generator.permutation(len(lengths))
    whole = len(order) - len(order) % batch_size
    rest, window = order[whole:], _WINDOW_BATCHES * batch_size
    batches = [
        batch
        for start in range(0, whole, window)
        for batch in pieces(
            longest_first(order[start : min(start + window, whole)], lengths), batch_size
        )
    ]
    shuffled = [batches[i] for i in generator.permutation(len(batches))]
    return [*shuffled, longest_first(rest, lengths)] if len(rest) else shuffled


def longest_first(indices: Indices, lengths: Indices) -> Indices:
    """Sort examples by falling length, so that memory runs out at the start or not at all."""
    return indices[np.argsort(-lengths[indices], kind="stable")]


def pieces(indices: Indices, size: int) -> list[Indices]:
    """Cut into pieces of `size`, the last one maybe smaller."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]
