"""Predict the rest of a text from a beginning that is seen as a whole (Raffel et al. 2020, §3.2).

Each document (each window, where documents are not isolated) is cut at a uniformly drawn place;
its prefix is seen from both sides and not predicted. A text of one token stays causal.
"""

from collections.abc import Sequence

import numpy as np
import torch

from data_prep.collate import IGNORED
from data_prep.samples import Layout, Sample
from pretrain.objectives.batch import TALLY, Batch
from pretrain.objectives.causal_lm import CausalLM
from pretrain.objectives.draws import Draws
from pretrain.objectives.traits import Head


class PrefixLM:
    """Adds `prefix_mask` (B, T) bool to a causal batch and drops the targets inside prefixes."""

    head: Head = "causal_lm"

    def __init__(self, layout: Layout, eod_id: int, seed: int) -> None:
        self.layout = layout
        self._causal = CausalLM(layout, eod_id)
        self._draws = Draws(seed, "prefix")

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See the module; the last token of a prefix predicts the first one after it."""
        batch = self._causal.collate(samples)
        prefix_mask = torch.zeros_like(batch["targets"], dtype=torch.bool)
        prefixes, targets = prefix_mask.numpy(), batch["targets"].numpy()
        for row, (sample, texts) in enumerate(zip(samples, self._texts(batch), strict=True)):
            if sample.index is None:
                continue
            chances = self._draws.uniform(sample.index, len(texts))
            for (begin, end), chance in zip(texts, chances, strict=True):
                cut = begin + int(chance * (end - begin))  # at least one token is predicted
                prefixes[row, begin:cut] = True
                targets[row, begin : max(cut - 1, begin)] = IGNORED
        return batch | {"prefix_mask": prefix_mask}

    def _texts(self, batch: Batch) -> list[list[tuple[int, int]]]:
        """First and last (exclusive) column of every isolated text, row by row."""
        rows, seq_len = batch["input_ids"].shape
        bounds = np.arange(0, (rows + 1) * seq_len, seq_len)
        if "cu_seqlens" in batch:
            bounds = batch["cu_seqlens"].numpy()
        used = batch[TALLY][:, 0].tolist()
        found: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
        for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            row = begin // seq_len
            first, last = begin - row * seq_len, min(end - row * seq_len, used[row])
            if first < last:  # the last one is the row's padding, unless the row is full
                found[row].append((first, last))
        return found
