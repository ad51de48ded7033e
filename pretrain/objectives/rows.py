"""Rows of segments with the special tokens around them, as numpy arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Stretch(NamedTuple):
    """Something that stands in a row: tokens, and whether they may be hidden."""

    tokens: Ints
    is_text: bool  # False for [CLS] and [SEP]


class Rows(NamedTuple):
    """A batch of rows, all (B, T) but `used`."""

    ids: Ints
    segments: Ints  # number of the segment that a token is text of, rising over the batch; or −1
    starts: npt.NDArray[np.bool_]  # where a document begins, or the row's padding
    used: Ints  # (B,) positions that are not padding


def lay_out(rows: Sequence[Sequence[Sequence[Stretch]]], seq_len: int, pad_id: int) -> Rows:
    """Lay stretches side by side; those of one document are isolated from the other documents.

    rows → documents → stretches. A document's text is one segment for masking.
    """
    shape = (len(rows), seq_len)
    ids = np.full(shape, pad_id, dtype=np.int64)
    segments = np.full(shape, -1, dtype=np.int64)
    starts = np.zeros(shape, dtype=bool)
    used = np.zeros(len(rows), dtype=np.int64)
    segment = -1
    for row, documents in enumerate(rows):
        at = 0
        for document in documents:
            segment += 1
            starts[row, at] = True
            for tokens, is_text in document:
                end = at + len(tokens)
                ids[row, at:end] = tokens
                if is_text:
                    segments[row, at:end] = segment
                at = end
        starts[row, at : at + 1] = True  # the padding, where there is any
        used[row] = at
    return Rows(ids, segments, starts, used)
