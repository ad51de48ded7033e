"""Texts → token ids, many documents to a call, by the fastest encoder whose ids are the same.

On every unit of work a sample of the documents is encoded by `tokenizers` too.
"""

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from data_prep.pieces import PIECE_CHARACTERS, cut
from data_prep.tokenizer_fast import FastEncoder, Ids, open_fast
from data_prep.tokenizer_losses import loss_check

GROUP_CHARACTERS = 4 << 20  # encoded at once: an Encoding is 30–80 times its text
_FIRST = 2  # documents of a unit that are always compared
_ONE_IN = 1024  # of the others
_COMPARED_CHARACTERS = 1 << 16  # of a longer document a part is compared
Counts = npt.NDArray[np.int64]


class EncodersDifferError(Exception):
    """The fast encoder gave other ids than `tokenizers`: encode the unit with that alone."""


class Encoded(NamedTuple):
    """Token ids of some documents, one after the other, each with its end-of-document token.

    A document that gave no token has none of that either, and length 0. So has one that is `lost`:
    the tokenizer has no token for a part of it.
    """

    ids: Ids  # (n,)
    lengths: Counts  # tokens of each document, its end included. (documents,)
    unknown: Counts  # of these, how many stand for text that the vocabulary cannot say
    lost: npt.NDArray[np.bool_]  # (documents,)
    sentences: Counts | None = None  # tokens of each sentence. (sentences,)
    sentence_counts: Counts | None = None  # sentences of each document. (documents,)


class BatchEncoder:
    """Encodes the documents of one unit after another.

    `tokenizer`: a `tokenizers.Tokenizer`, set to encode special tokens as text.
    """

    def __init__(
        self, tokenizer: Any, eod_id: int, unknown_id: int | None, backend: str = "auto"
    ) -> None:
        self._tokenizer, self._eod_id, self._unknown_id = tokenizer, eod_id, unknown_id
        content = tokenizer.to_str().encode("utf-8")
        opened: FastEncoder | str = "tokenizer.backend=tokenizers"
        if backend != "tokenizers":
            opened = open_fast(content, lambda pieces: encode_plainly(tokenizer, pieces))
        self._opened = None if isinstance(opened, str) else opened
        self.backend = "tokenizers" if isinstance(opened, str) else "gigatoken"
        self.reason = opened if isinstance(opened, str) else ""
        self._is_lost = loss_check(tokenizer, orjson.loads(content))
        self.begin_unit(0)

    def begin_unit(self, unit: int, is_fast: bool = True) -> None:
        """Start a unit's documents: which ones are compared depends on the unit alone."""
        self._fast = self._opened if is_fast else None
        self._unit, self._seen = unit, 0

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode documents. Raises EncodersDifferError."""
        lost = self._lost([texts])[0]
        if lost.any():
            kept = self.encode([text for text, gone in zip(texts, lost, strict=True) if not gone])
            return _with_lost(kept, lost)
        ids, lengths = self._encode(texts)
        self._compare(texts, ids, lengths)
        return self._finish(ids, lengths)

    def encode_sentences(self, documents: Sequence[Sequence[str]]) -> Encoded:
        """Encode documents sentence by sentence; one without a token is no sentence."""
        lost = np.array([part.any() for part in self._lost(documents)], dtype=bool)
        if lost.any():
            kept = [document for document, gone in zip(documents, lost, strict=True) if not gone]
            return _with_lost(self.encode_sentences(kept), lost)
        texts = list(chain.from_iterable(documents))
        ids, lengths = self._encode(texts)
        self._compare(texts, ids, lengths)
        counts = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        whole = _sums(lengths, counts)
        encoded = self._finish(ids, whole)
        # The end-of-document token belongs to the last sentence that has tokens.
        has_tokens = lengths > 0
        numbers = np.where(has_tokens, np.arange(len(lengths)), -1)
        last = np.cumsum(counts)[whole > 0] - 1
        lengths = lengths.copy()
        lengths[np.maximum.accumulate(numbers)[last]] += 1
        return encoded._replace(
            sentences=lengths[has_tokens],
            sentence_counts=_sums(has_tokens.astype(np.int64), counts),
        )

    def _lost(self, documents: Sequence[Sequence[str]]) -> list[npt.NDArray[np.bool_]]:
        """Which texts have a part that the tokenizer would drop unseen."""
        check = self._is_lost
        if check is None:
            return [np.zeros(len(texts), dtype=bool) for texts in documents]
        return [np.fromiter(map(check, texts), dtype=bool) for texts in documents]

    def _encode(self, texts: Sequence[str]) -> tuple[Ids, Counts]:
        if all(len(text) <= PIECE_CHARACTERS for text in texts):
            return self._encode_pieces(texts)
        pieces = [list(cut(text, PIECE_CHARACTERS)) for text in texts]
        ids, lengths = self._encode_pieces(list(chain.from_iterable(pieces)))
        counts = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        return ids, _sums(lengths, counts)

    def _encode_pieces(self, pieces: Sequence[str]) -> tuple[Ids, Counts]:
        if not pieces:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        if self._fast is not None:
            return self._fast.encode(pieces)
        parts = encode_plainly(self._tokenizer, pieces)
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        return np.concatenate(parts), lengths

    def _finish(self, ids: Ids, lengths: Counts) -> Encoded:
        """Count what is unknown, and put the end-of-document tokens in."""
        filled = lengths > 0
        unknown = np.zeros(len(lengths), dtype=np.int64)
        if self._unknown_id is not None:
            unknown = _sums((ids == self._unknown_id).astype(np.int64), lengths)
        ends = np.cumsum(lengths + filled)[filled] - 1
        complete = np.empty(len(ids) + len(ends), dtype=np.int32)
        is_text = np.ones(len(complete), dtype=bool)
        is_text[ends] = False
        complete[is_text] = ids
        complete[ends] = self._eod_id
        return Encoded(complete, lengths + filled, unknown, np.zeros(len(lengths), dtype=bool))

    def _compare(self, texts: Sequence[str], ids: Ids, lengths: Counts) -> None:
        """Encode the sample among these texts by `tokenizers` too."""
        first, self._seen = self._seen, self._seen + len(texts)
        if self._fast is None:
            return
        ends = np.cumsum(lengths)
        for number in self._sample(first, self._seen):
            at = number - first
            text, own = texts[at], ids[ends[at] - lengths[at] : ends[at]]
            if len(text) > _COMPARED_CHARACTERS:
                start = self._draw(number) % (len(text) - _COMPARED_CHARACTERS)
                text = text[start : start + _COMPARED_CHARACTERS]
                own, _ = self._fast.encode([text])
            if not np.array_equal(own, encode_plainly(self._tokenizer, [text])[0]):
                raise EncodersDifferError(
                    f"gigatoken and tokenizers encode document {number} of unit {self._unit} "
                    f"differently ({text[:40]!r} …)"
                )

    def _sample(self, start: int, stop: int) -> list[int]:
        """Which of the unit's documents [start, stop) are compared: one of each so many."""
        blocks = range(start // _ONE_IN, -(-stop // _ONE_IN))
        drawn = {block * _ONE_IN + self._draw(block) % _ONE_IN for block in blocks}
        return sorted(n for n in drawn | {*range(_FIRST)} if start <= n < stop)

    def _draw(self, number: int) -> int:
        digest = hashlib.blake2b(f"{self._unit} {number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def encode_plainly(tokenizer: Any, pieces: Sequence[str]) -> list[Ids]:
    """Ids of each piece by `tokenizers`, a few MiB of text at a time."""
    found: list[Ids] = []
    start = 0
    while start < len(pieces):
        end, size = start, 0
        while end < len(pieces) and (end == start or size + len(pieces[end]) <= GROUP_CHARACTERS):
            size += len(pieces[end])
            end += 1
        group = list(pieces[start:end])
        for encoding in tokenizer.encode_batch_fast(group, add_special_tokens=False):
            found.append(np.array(encoding.ids, dtype=np.int32))
        start = end
    return found


def _with_lost(kept: Encoded, lost: npt.NDArray[np.bool_]) -> Encoded:
    """The same with documents of no tokens where they were lost."""

    def spread(values: Counts) -> Counts:
        all_values = np.zeros(len(lost), dtype=values.dtype)
        all_values[~lost] = values
        return all_values

    counts = None if kept.sentence_counts is None else spread(kept.sentence_counts)
    return kept._replace(
        lengths=spread(kept.lengths),
        unknown=spread(kept.unknown),
        lost=lost,
        sentence_counts=counts,
    )


def _sums(values: Counts, counts: Counts) -> Counts:
    """Sums of runs of `counts` values, one after the other; a run may be empty."""
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(counts)
    sums: Counts = before[ends] - before[ends - counts]
    return sums
