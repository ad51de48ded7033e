"""Masked prediction on pairs of texts, and what the second has to do with the first.

NSP (Devlin et al. 2019, §3.1): half of the second texts are replaced by a stretch of another
document. SOP (Lan et al. 2020, "ALBERT", §3.1): half of the pairs are in the wrong order.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from data_prep.collate import IGNORED
from data_prep.samples import Layout, Sample, Segment
from data_prep.shards import Shards
from pretrain.objectives.batch import TALLY, Batch
from pretrain.objectives.draws import Draws
from pretrain.objectives.masked_lm import Frame, masked_batch
from pretrain.objectives.masking import Masker
from pretrain.objectives.objective import tally
from pretrain.objectives.rows import Stretch, lay_out
from pretrain.objectives.traits import Head
from pretrain.sections import Pairs
from runtime.errors import UserError

Ints = npt.NDArray[np.int64]

TOGETHER, APART = 0, 1  # pair_labels, as Hugging Face numbers them
_CHANCES = 64  # random numbers kept for one pair
_ATTEMPTS = 16  # documents drawn until one has text


class Pair(NamedTuple):
    """Two texts; label −100, and a second without tokens, where there is no pair to judge."""

    first: Ints
    second: Ints
    label: int
    own: int  # tokens that are of the sample's piece


class SentencePairs:
    """Rows of [CLS] A [SEP] B [SEP] with `token_type_ids`, `pair_labels` and hidden tokens.

    A pair is made from one piece of a document. With `pairs.short_fraction` it is cut to a
    random length first. A and B part at a random sentence bound.

    NSP: B is replaced in half of the pairs, by no more tokens than it had, which end like it:
    inside a sentence where the piece was cut, else with their document, so that neither tells. A
    piece of one sentence keeps at most half the row and is always followed by another document,
    as in BERT.

    SOP: a piece is made of whole sentences, without the halves of those that its bounds cut: they
    alone would tell the order. With fewer than two it is hidden tokens only, and no pair.
    """

    head: Head = "pretraining"

    def __init__(
        self,
        layout: Layout,
        frame: Frame,
        masker: Masker,
        *,
        pairs: Pairs,
        seed: int,
        others: "OtherDocuments | None",
    ) -> None:
        """With `others`: NSP, else SOP."""
        self.layout = layout
        self._frame, self._masker = frame, masker
        self._short_fraction = pairs.short_fraction
        self._draws = Draws(seed, "pairs")
        self._others = others

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Make each sample's pair, frame it and hide tokens; the tally counts what is left out."""
        pairs = [self.pair(sample) for sample in samples]
        begin, end = self._frame.begin, self._frame.end
        rows = lay_out(
            [
                [[begin, _text(pair.first), end, _text(pair.second), end]] if pair else []
                for pair in pairs
            ],
            self.layout.seq_len,
            self._frame.pad,
        )
        batch = masked_batch(rows, samples, self._masker, self.layout)
        second = np.array([2 + len(pair.first) if pair else 0 for pair in pairs])
        columns = np.arange(self.layout.seq_len)
        is_second = (columns >= second[:, None]) & (columns < rows.used[:, None])
        left_out = [
            len(sample.segments[0].tokens) - pair.own if pair else 0
            for sample, pair in zip(samples, pairs, strict=True)
        ]
        return batch | {
            "token_type_ids": torch.from_numpy(is_second.astype(np.int64)),
            "pair_labels": torch.tensor([pair.label if pair else IGNORED for pair in pairs]),
            TALLY: tally(torch.from_numpy(rows.used), torch.tensor(left_out)),
        }

    def pair(self, sample: Sample) -> Pair | None:
        """The two texts of a sample; None for a padding row."""
        if sample.index is None:
            return None
        (segment,) = sample.segments
        chances = iter(self._draws.uniform(sample.index, _CHANCES).tolist())
        room = self.layout.room
        if next(chances) < self._short_fraction:
            room = 2 + int(next(chances) * (room - 1))
        tokens = segment.tokens[:room]
        is_cut = len(tokens) == room
        ends = segment.sentence_ends[segment.sentence_ends < len(tokens)]
        if self._others is None:
            bounds = np.concatenate([[0], ends, [len(tokens)]])
            # Without the sentence that began in the piece before, and the one that goes on.
            whole = bounds[int(segment.previous is not None) : len(bounds) - is_cut]
            return _in_some_order(tokens, whole, chances)
        if not len(ends):
            first = tokens[: room - room // 2]
            room -= len(first)
            other = self._others.stretch(segment, room, chances, is_cut=is_cut)
            return Pair(first, other, APART, len(first))
        cut = ends[int(next(chances) * len(ends))]
        first, second = tokens[:cut], tokens[cut:]
        if next(chances) < 0.5:
            return Pair(first, second, TOGETHER, len(tokens))
        other = self._others.stretch(segment, len(second), chances, is_cut=is_cut)
        return Pair(first, other, APART, len(first))


def _in_some_order(tokens: Ints, bounds: Ints, chances: Iterator[float]) -> Pair:
    """Part whole sentences in two, and swap those in half of the pairs."""
    if len(bounds) < 3:
        return Pair(tokens, tokens[:0], IGNORED, len(tokens))
    begin, end = bounds[0], bounds[-1]
    cut = bounds[1 + int(next(chances) * (len(bounds) - 2))]
    first, second = tokens[begin:cut], tokens[cut:end]
    if next(chances) < 0.5:
        return Pair(first, second, TOGETHER, int(end - begin))
    return Pair(second, first, APART, int(end - begin))


class OtherDocuments:
    """Stretches of random documents of the same source, which alone would not give NSP away."""

    def __init__(self, shards: Sequence[Shards]) -> None:
        self._shards = shards

    def stretch(
        self, segment: Segment, room: int, chances: Iterator[float], *, is_cut: bool
    ) -> Ints:
        """At most `room` tokens of another document than the segment's, from a sentence's start.

        With `is_cut` a random sentence of those that are followed by so much, where there are
        such; else what the document ends with, cut only where its last sentence is too long.
        Never a document's first sentence if it has others, for no document's own B is one.
        Documents are drawn alike, long or short, as in BERT. Raises UserError where none has text.
        """
        shards = self._shards[segment.source]
        for _ in range(_ATTEMPTS):
            number = int(next(chances) * (len(shards) - 1))
            number += number >= segment.document
            tokens = shards[number]
            length = len(tokens) - (len(tokens) > 0 and tokens[-1] == shards.eod_id)
            if not length:
                continue
            ends = shards.sentence_ends(number)
            begins = ends[ends < length]
            if not len(begins):
                begins = np.zeros(1, np.int64)
            if is_cut:
                enough = max(1, int(np.searchsorted(begins, length - room, "right")))
                begin = int(begins[int(next(chances) * enough)])
            else:
                late = int(np.searchsorted(begins, length - room))
                begin = int(begins[min(late, len(begins) - 1)])
            return tokens[begin : min(begin + room, length)].astype(np.int64)
        raise UserError(
            f"{shards.directory}: {_ATTEMPTS} random documents of split {shards.split!r} are "
            "empty, and NSP needs others; prepare the data without empty documents"
        )


def _text(tokens: Ints) -> Stretch:
    return Stretch(tokens, is_text=True)
