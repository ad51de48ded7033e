"""Samples → tensors for next-token prediction, the loader's default."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from data_prep.samples import Layout, Sample, Segment

IGNORED = -100  # a target that no loss counts
Batch = dict[str, torch.Tensor]


class CausalCollate:
    """Rows of `input_ids` and `targets`, both (samples, seq_len) int64; −100 is not predicted.

    Windows of the stream ("concat", "documents"): the targets are the tokens that follow, which
    takes a lookahead of 1.

    Pieces of documents ("best_fit", "padded"): a segment's targets are its own tokens, its inputs
    the same shifted by one, with the token before the segment in front: the end-of-document token
    where the document begins. So each token of an epoch is predicted exactly once, a document's
    first one from the end-of-document token alone.

    `position_ids` (samples, seq_len) and `cu_seqlens` (int32, bounds in the flattened rows) for
    "documents" and "best_fit": positions restart, and attention ends, with each document or
    segment; a row's padding counts as one too. "padded" has `attention_mask` (samples, seq_len)
    instead, 1 where a row has text.
    """

    def __init__(self, layout: Layout, eod_id: int) -> None:
        if layout.overhead or layout.lookahead != (not layout.by_document):
            raise ValueError(f"not a layout for next-token prediction: {layout}")
        self._layout, self._eod_id = layout, eod_id

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples; what is left of a row is padded with the end-of-document token."""
        shape = (len(samples), self._layout.seq_len)
        inputs = np.full(shape, self._eod_id, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        starts = np.zeros(shape, dtype=bool)  # of what is isolated
        used = np.zeros(len(samples), dtype=np.int64)  # positions of each row that hold text
        fill = self._fill_pieces if self._layout.by_document else self._fill_window
        for row, sample in enumerate(samples):
            used[row] = fill(sample.segments, inputs[row], targets[row], starts[row])
        batch = {"input_ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
        columns = np.arange(shape[1])
        if self._layout.packing == "padded":
            mask = (columns < used[:, None]).astype(np.int64)
            return batch | {"attention_mask": torch.from_numpy(mask)}
        if self._layout.packing == "concat":
            return batch
        return batch | isolate(starts | (columns == used[:, None]))

    def _fill_window(
        self,
        segments: Sequence[Segment],
        inputs: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        starts: npt.NDArray[np.bool_],
    ) -> int:
        if not segments:
            return 0
        tokens = segments[0].tokens
        used = min(len(tokens), len(inputs))
        inputs[:used] = tokens[:used]
        targets[: len(tokens) - 1] = tokens[1:]
        starts[1:used] = inputs[: used - 1] == self._eod_id
        return used

    def _fill_pieces(
        self,
        segments: Sequence[Segment],
        inputs: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        starts: npt.NDArray[np.bool_],
    ) -> int:
        used = 0
        for segment in segments:
            end = used + len(segment.tokens)
            inputs[used] = self._eod_id if segment.previous is None else segment.previous
            inputs[used + 1 : end] = segment.tokens[:-1]
            targets[used:end] = segment.tokens
            starts[used] = True
            used = end
        return used


def isolate(starts: npt.NDArray[np.bool_]) -> Batch:
    """`cu_seqlens` and `position_ids` of (B, T) rows from where each isolated stretch begins."""
    starts[:, 0] = True
    columns = np.arange(starts.shape[1])
    bounds = np.append(np.flatnonzero(starts), starts.size).astype(np.int32)
    last_start = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    return {
        "cu_seqlens": torch.from_numpy(bounds),
        "position_ids": torch.from_numpy(columns - last_start),
    }
