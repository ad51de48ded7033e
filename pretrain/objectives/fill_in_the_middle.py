"""Turn documents around, so that a causal model learns to fill in (Bavarian et al. 2022).

A document is cut at two uniformly drawn places into prefix, middle and suffix, and becomes

    PSM: ‹prefix› prefix ‹suffix› suffix ‹middle› middle
    SPM: ‹prefix› ‹suffix› suffix ‹middle› prefix middle

with the end-of-document token, where it has one, at the end of either. The paper cuts between
characters; here the cuts lie between tokens, since the data are tokens already: at a cut inside a
word the model sees whole tokens only. The loss goes over all tokens, as in the paper.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_prep.samples import Layout, Sample, Segment
from pretrain.objectives.batch import Batch
from pretrain.objectives.causal_lm import CausalLM
from pretrain.objectives.draws import Draws
from pretrain.objectives.traits import Head
from pretrain.sections import Infilling


class Sentinels(NamedTuple):
    """Ids of the three tokens that mark the parts."""

    prefix: int
    middle: int
    suffix: int


class FillInTheMiddle:
    """Next-token prediction on documents of which a share is turned around."""

    head: Head = "causal_lm"

    def __init__(
        self, layout: Layout, eod_id: int, infilling: Infilling, sentinels: Sentinels, seed: int
    ) -> None:
        self.layout = layout
        self._causal = CausalLM(layout, eod_id)
        self._eod_id, self._infilling, self._sentinels = eod_id, infilling, sentinels
        self._draws = Draws(seed, "infilling")

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """A causal batch of the turned samples."""
        return self._causal.collate([self.turned(sample) for sample in samples])

    def turned(self, sample: Sample) -> Sample:
        """The sample with some of its segments turned around."""
        if sample.index is None:
            return sample
        chances = self._draws.uniform(sample.index, 4 * len(sample.segments)).reshape(-1, 4)
        segments = zip(sample.segments, chances.tolist(), strict=True)
        return Sample(sample.index, tuple(self._turn(*pair) for pair in segments))

    def _turn(self, segment: Segment, chances: list[float]) -> Segment:
        if chances[0] >= self._infilling.fraction:
            return segment
        tokens, end = segment.tokens, segment.tokens[len(segment.tokens) :]
        if len(tokens) and tokens[-1] == self._eod_id:
            tokens, end = tokens[:-1], tokens[-1:]
        one, other = (int(chance * (len(tokens) + 1)) for chance in chances[2:])
        first, last = min(one, other), max(one, other)
        prefix, middle, suffix = tokens[:first], tokens[first:last], tokens[last:]
        before, hole, after = (np.array([token]) for token in self._sentinels)
        if chances[1] < self._infilling.spm_fraction:
            parts = [before, after, suffix, hole, prefix, middle, end]
        else:
            parts = [before, prefix, after, suffix, hole, middle, end]
        # Nothing leads into a turned document, even where it is the second piece of a long one.
        return segment._replace(tokens=np.concatenate(parts).astype(np.int64), previous=None)
