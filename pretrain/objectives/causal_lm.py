"""Predict each token from those before it (Radford et al. 2018)."""

from collections.abc import Sequence

from data_prep.collate import CausalCollate
from data_prep.samples import Layout, Sample
from pretrain.objectives.batch import TALLY, Batch
from pretrain.objectives.objective import positions_used, tally
from pretrain.objectives.traits import Head


class CausalLM:
    """Next-token prediction, as the loader's own collate lays it out."""

    head: Head = "causal_lm"

    def __init__(self, layout: Layout, eod_id: int) -> None:
        self.layout = layout
        # What an objective adds to its segments stands in them when they come here.
        self._collate = CausalCollate(layout._replace(overhead=0), eod_id)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See `data_prep.collate.CausalCollate`."""
        used = positions_used(samples, self.layout.seq_len)
        return self._collate(samples) | {TALLY: tally(used)}
