"""A split as a stream: its documents joined end to end and cut into windows of one length."""

import numpy as np

from data_prep.permutation import make_key, permute, unpermute
from data_prep.samples import (
    NO_SENTENCES,
    Layout,
    PackingReport,
    Seen,
    Segment,
    Tokens,
    ends_within,
    report_of,
)
from data_prep.shards import Shards


class Windows:
    """Sample w is tokens [w·s, w·s + s + lookahead) of the stream, fewer at its end."""

    def __init__(self, shards: Shards, layout: Layout, source: int) -> None:
        self._shards, self._layout, self._source = shards, layout, source
        self.tokens = shards.tokens
        self.size = -(-shards.tokens // layout.room)

    def shuffled(self, seed: int, epoch: int, places: Tokens) -> Tokens:
        """The windows at some places of an epoch; nothing but the key is stored."""
        return permute(places, self.size, make_key(seed, self._source, epoch))

    def segments(self, number: int) -> tuple[Segment, ...]:
        """One segment, which documents may begin and end in."""
        start = number * self._layout.room
        tokens = self._shards.read(start, self._layout.room + self._layout.lookahead)
        documents = self._shards.documents_between(start, start + len(tokens))
        ends = self._sentence_ends(documents, start, len(tokens))
        return (Segment(tokens, None, self._source, documents.start, ends),)

    def _sentence_ends(self, documents: range, start: int, count: int) -> Tokens:
        if not self._shards.has_sentences:
            return NO_SENTENCES
        parts = [
            self._shards.sentence_ends(document) + self._shards.token_range(document).start
            for document in documents
        ]
        return ends_within(np.concatenate(parts), start, count)

    def seen(self, number: int) -> list[Seen]:
        """The window's own tokens, without the lookahead."""
        start = number * self._layout.room
        end = min(start + self._layout.room, self._shards.tokens)
        documents = self._shards.documents_between(start, end)
        return [Seen(self._source, documents, range(start, end))]

    def tokens_before(self, seed: int, epoch: int, place: int) -> int:
        """The tokens of the first places of an epoch: all windows are full but the last one."""
        last = self.size - 1
        key = make_key(seed, self._source, epoch)
        missing = self.size * self._layout.room - self.tokens
        has_last = missing and int(unpermute(last, self.size, key)) < place
        return place * self._layout.room - (missing if has_last else 0)

    def report(self, count_cut: bool = True) -> PackingReport:
        """One epoch in numbers. Counting the documents that are cut takes reading the index."""
        return report_of(
            self._layout,
            self.size,
            self.size,
            documents=len(self._shards),
            cut=self._cut_documents() if count_cut else None,
            tokens=self.tokens,
        )

    def _cut_documents(self) -> int:
        ends = np.cumsum(self._shards.lengths(), dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        room = self._layout.room
        return int((starts // room != (ends - 1) // room).sum())
