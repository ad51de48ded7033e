"""What the loop and the loader know of an objective."""

from collections.abc import Sequence
from typing import Protocol

import torch

from data_prep.samples import Layout, Sample
from pretrain.objectives.batch import Batch
from pretrain.objectives.traits import Head


class Objective(Protocol):
    """How samples become a batch, and the head that learns from it.

    Every implementation is a pure function of the run's seed and the samples: the same sample
    gives the same row at any world size, micro-batch or restart.
    """

    head: Head
    layout: Layout

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Make the tensors of some samples: those of `data_prep.collate`, and more."""
        ...


def positions_used(samples: Sequence[Sample], seq_len: int) -> torch.Tensor:
    """Positions of each row that hold the samples' own tokens. (B,) int64"""
    sums = (sum(len(segment.tokens) for segment in sample.segments) for sample in samples)
    return torch.tensor([min(total, seq_len) for total in sums], dtype=torch.int64)


def tally(used: torch.Tensor, replaced: torch.Tensor | None = None) -> torch.Tensor:
    """The (B, 2) tally of a batch from its columns."""
    return torch.stack([used, torch.zeros_like(used) if replaced is None else replaced], dim=1)
