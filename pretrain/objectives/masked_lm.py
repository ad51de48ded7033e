"""Predict hidden tokens from both sides (Devlin et al. 2019): rows of [CLS] text [SEP]."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from data_prep.collate import isolate
from data_prep.samples import Layout, Sample
from pretrain.objectives.batch import TALLY, Batch
from pretrain.objectives.masking import Masker
from pretrain.objectives.objective import tally
from pretrain.objectives.rows import Rows, Stretch, lay_out
from pretrain.objectives.traits import Head


class Frame(NamedTuple):
    """Ids of the tokens around a text."""

    cls: int
    sep: int
    pad: int

    @property
    def begin(self) -> Stretch:
        """[CLS]."""
        return Stretch(np.array([self.cls]), is_text=False)

    @property
    def end(self) -> Stretch:
        """[SEP]."""
        return Stretch(np.array([self.sep]), is_text=False)


class MaskedLM:
    """Hides tokens of isolated documents ("best_fit", "padded") or of windows ("concat").

    A batch has `input_ids`, `targets` (−100 where nothing is hidden), and `position_ids` with
    `cu_seqlens`, or for "padded" `attention_mask`.
    """

    head: Head = "masked_lm"

    def __init__(self, layout: Layout, frame: Frame, masker: Masker) -> None:
        self.layout = layout
        self._frame, self._masker = frame, masker

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Frame each segment and hide a share of its tokens."""
        begin, end = self._frame.begin, self._frame.end
        rows = lay_out(
            [
                [[begin, Stretch(segment.tokens, is_text=True), end] for segment in sample.segments]
                for sample in samples
            ],
            self.layout.seq_len,
            self._frame.pad,
        )
        return masked_batch(rows, samples, self._masker, self.layout)


def masked_batch(rows: Rows, samples: Sequence[Sample], masker: Masker, layout: Layout) -> Batch:
    """Hide tokens of rows and say what is padding."""
    inputs, targets = masker(rows.ids, rows.segments, [sample.index for sample in samples])
    batch = {
        "input_ids": torch.from_numpy(inputs),
        "targets": torch.from_numpy(targets),
        TALLY: tally(torch.from_numpy(rows.used)),
    }
    if layout.packing == "padded":
        # A row without text keeps its first token: nothing can attend to nothing.
        seen = np.arange(layout.seq_len) < np.maximum(rows.used, 1)[:, None]
        return batch | {"attention_mask": torch.from_numpy(seen.astype(np.int64))}
    return batch | isolate(rows.starts)
