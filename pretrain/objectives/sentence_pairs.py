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
from pretrain.objectives.masking import FindWords, Masker
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
    """Two texts; label −100 where a text of one token leaves nothing for the second."""

    first: Ints
    second: Ints
    label: int
    own: int  # tokens that are of the sample's piece


class SentencePairs:
    """Rows of [CLS] A [SEP] B [SEP] with `token_type_ids`, `pair_labels` and hidden tokens.

    A pair is made from one piece of a document. With `pairs.short_fraction` it is cut to a
    random length first. NSP: A and B part at a random sentence bound; B is replaced in half of the
    pairs, by no more tokens than it had, which end like it: inside a sentence where the piece was
    cut, else with one, so that neither tells. A piece of one sentence keeps at most half the row
    and is always followed by another document, as in BERT. SOP: a piece of one sentence is parted
    at the word start nearest its middle.
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
        find_words: FindWords,
    ) -> None:
        """With `others`: NSP, else SOP."""
        self.layout = layout
        self._frame, self._masker = frame, masker
        self._short_fraction = pairs.short_fraction
        self._draws = Draws(seed, "pairs")
        self._others, self._find_words = others, find_words

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
            return self._in_some_order(tokens, ends, chances)
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

    def _in_some_order(self, tokens: Ints, ends: Ints, chances: Iterator[float]) -> Pair:
        if len(tokens) < 2:
            return Pair(tokens, tokens[:0], IGNORED, len(tokens))
        place = next(chances)
        cut = ends[int(place * len(ends))] if len(ends) else self._middle(tokens)
        first, second = tokens[:cut], tokens[cut:]
        if next(chances) < 0.5:
            return Pair(first, second, TOGETHER, len(tokens))
        return Pair(second, first, APART, len(tokens))

    def _middle(self, tokens: Ints) -> int:
        """The word start nearest the middle; the middle itself inside a single long word."""
        starts = self._find_words(tokens[None], np.zeros_like(tokens[None]))[0]
        places = np.flatnonzero(starts[1:]) + 1
        if not len(places):
            return len(tokens) // 2
        return int(places[np.argmin(np.abs(places - len(tokens) / 2))])


class OtherDocuments:
    """Stretches of random documents of the same source, which alone would not give NSP away."""

    def __init__(self, shards: Sequence[Shards]) -> None:
        self._shards = shards

    def stretch(
        self, segment: Segment, room: int, chances: Iterator[float], *, is_cut: bool
    ) -> Ints:
        """At most `room` tokens from a random sentence of another document than the segment's.

        Whole sentences, unless `is_cut` or the first is too long. Documents are drawn alike, long
        or short, as in BERT. Raises UserError where none has text.
        """
        shards = self._shards[segment.source]
        for _ in range(_ATTEMPTS):
            number = int(next(chances) * (len(shards) - 1))
            number += number >= segment.document
            tokens = shards[number]
            length = len(tokens) - (len(tokens) > 0 and tokens[-1] == shards.eod_id)
            ends = np.minimum(shards.sentence_ends(number), length)
            begins = np.concatenate([np.zeros(1, np.int64), ends[ends < length]])
            begin = int(begins[int(next(chances) * len(begins))])
            whole = ends[(ends > begin) & (ends <= begin + room)]
            end = min(begin + room, length) if is_cut or not len(whole) else int(whole[-1])
            if length:
                return tokens[begin:end].astype(np.int64)
        raise UserError(
            f"{shards.directory}: {_ATTEMPTS} random documents of split {shards.split!r} are "
            "empty, and NSP needs others; prepare the data without empty documents"
        )


def _text(tokens: Ints) -> Stretch:
    return Stretch(tokens, is_text=True)
