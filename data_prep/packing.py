"""A split as pieces of documents, packed into rows so that little of a row is padding.

Best-fit-decreasing (Johnson et al., SIAM J. Comput. 3(4), 1974) on the histogram of lengths, as
Ding et al. do for pretraining ("Fewer Truncations Improve Language Modeling", ICML 2024): pieces
of one length are alike, so whole groups of bins are filled at once.
"""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.permutation import make_key, permute
from data_prep.samples import Layout, PackingReport, Seen, Segment, Tokens, ends_within, report_of
from data_prep.shards import Shards
from runtime.errors import UserError

CHUNK_PIECES = 1 << 16  # packed together; more of them fill rows no better
_PLANS_KEPT = 2  # an epoch passes through the chunks one after the other
_DOCUMENTS, _ROWS = 1, 2  # the fixed orders: which chunk a document is in, which row a bin is


class Placement(NamedTuple):
    """`each` pieces of one size go into every bin of a range."""

    size: int
    bins: range
    each: int


def best_fit(counts: npt.NDArray[np.int64], capacity: int) -> tuple[int, list[Placement]]:
    """Pack `counts[n]` pieces of every size n: how many bins, and what goes where, largest first.

    Each piece goes into the bin that it leaves the least room in. counts: (capacity + 1,); the
    placements name the pieces of a size one after the other.
    """
    groups: dict[int, list[range]] = {}  # room left → bins with that much
    rooms = 0  # bit r: some bin has r positions left
    bins, placements = 0, []
    for size in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[size])
        while left:
            fitting = rooms >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                group = groups[room].pop()
                if not groups[room]:
                    rooms ^= 1 << room
            else:
                room = capacity
                group = range(bins, bins - (-left // (capacity // size)))
                bins = group.stop
            # A bin with a piece of this size in it fits the next one better still.
            each = min(room // size, left)
            filled = group[: left // each]
            left -= each * len(filled)
            placements.append(Placement(size, filled, each))
            for changed, rest in ((filled, room - each * size), (group[len(filled) :], room)):
                if rest and changed:
                    groups.setdefault(rest, []).append(changed)
                    rooms |= 1 << rest
    return bins, placements


class _Plan(NamedTuple):
    """The pieces of one chunk, row by row."""

    documents: Tokens  # (pieces,) of the split
    starts: Tokens  # (pieces,) tokens of the document before the piece
    counts: Tokens  # (pieces,) tokens
    bounds: Tokens  # (rows + 1,) first piece of each row


class Pieces:
    """Samples made of whole pieces of documents: several in a row ("best_fit") or one ("padded").

    The documents are drawn into chunks of about 65,536 pieces by a fixed keyed permutation, so
    that each chunk is a fair sample of the split, and each chunk is packed by itself. Memory: four
    bytes for each document, and two chunks. Raises UserError where the split has no text.
    """

    def __init__(self, shards: Shards, layout: Layout, source: int) -> None:
        self._shards, self._layout, self._source = shards, layout, source
        self._lengths = shards.lengths()
        if layout.drops_eod:
            self._lengths = np.maximum(self._lengths - 1, 0)
        pieces = int((-(-self._lengths // layout.room)).sum(dtype=np.int64))
        if not pieces:
            raise UserError(f"{shards.directory}: split {shards.split!r} holds no tokens")
        self._pieces = pieces
        chunks = -(-pieces // CHUNK_PIECES)
        self._chunk_documents = -(-len(shards) // chunks)
        firsts = range(0, len(shards), self._chunk_documents)
        # How many rows each chunk makes, and how many tokens those hold.
        self._rows, self._tokens = np.array(
            [self._count(chunk) for chunk in range(len(firsts))], dtype=np.int64
        ).T
        self._ends = np.cumsum(self._rows)
        self.size = int(self._ends[-1])
        self.tokens = int(self._tokens.sum())
        self._plans: OrderedDict[int, _Plan] = OrderedDict()

    def shuffled(self, seed: int, epoch: int, places: Tokens) -> Tokens:
        """The rows at some places of an epoch: chunks in another order, each shuffled."""
        order, ends = self._chunks_of(seed, epoch)
        turns = np.searchsorted(ends, places, side="right")
        numbers = np.empty_like(places)
        for turn in np.unique(turns):
            chunk, mine = int(order[turn]), turns == turn
            rows = int(self._rows[chunk])
            key = make_key(seed, self._source, epoch, chunk)
            inside = permute(places[mine] - (ends[turn] - rows), rows, key)
            numbers[mine] = self._ends[chunk] - rows + inside
        return numbers

    def _chunks_of(self, seed: int, epoch: int) -> tuple[Tokens, Tokens]:
        """The chunks in an epoch's order, and the places at which each one ends."""
        chunks = len(self._rows)
        order = permute(np.arange(chunks), chunks, make_key(seed, self._source, epoch))
        return order, np.cumsum(self._rows[order])

    def tokens_before(self, seed: int, epoch: int, place: int) -> int:
        """The tokens of the first places of an epoch: those of whole chunks, and of some rows."""
        order, ends = self._chunks_of(seed, epoch)
        turn = int(np.searchsorted(ends, place, side="right"))
        whole = int(self._tokens[order[:turn]].sum())
        if turn == len(order):
            return whole
        chunk, plan = int(order[turn]), self._plan(int(order[turn]))
        rows = int(self._rows[chunk])
        key = make_key(seed, self._source, epoch, chunk)
        inside = permute(np.arange(place - (int(ends[turn]) - rows)), rows, key)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(plan.counts)])[plan.bounds]
        return whole + int(np.diff(before)[inside].sum())

    def segments(self, number: int) -> tuple[Segment, ...]:
        """The pieces of one row."""
        return tuple(self._segment(*piece) for piece in self._row(number))

    def seen(self, number: int) -> list[Seen]:
        """One entry for each piece."""
        found = []
        for document, start, count in self._row(number):
            first = self._shards.token_range(document).start + start
            documents = range(document, document + 1)
            found.append(Seen(self._source, documents, range(first, first + count)))
        return found

    def report(self, count_cut: bool = True) -> PackingReport:
        """One epoch in numbers."""
        return report_of(
            self._layout,
            self.size,
            self._pieces,
            documents=int((self._lengths > 0).sum()),
            cut=int((self._lengths > self._layout.room).sum()) if count_cut else None,
            tokens=self.tokens,
        )

    def _segment(self, document: int, start: int, count: int) -> Segment:
        tokens = self._shards[document]
        return Segment(
            tokens[start : start + count].astype(np.int64),
            int(tokens[start - 1]) if start else None,
            self._source,
            document,
            ends_within(self._shards.sentence_ends(document), start, count),
        )

    def _row(self, number: int) -> list[tuple[int, int, int]]:
        """(document, start, count) of each piece of a row."""
        chunk = int(np.searchsorted(self._ends, number, side="right"))
        plan = self._plan(chunk)
        row = number - int(self._ends[chunk] - self._rows[chunk])
        own = slice(int(plan.bounds[row]), int(plan.bounds[row + 1]))
        columns = (plan.documents[own], plan.starts[own], plan.counts[own])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _documents(self, chunk: int) -> Tokens:
        count = len(self._shards)
        first = chunk * self._chunk_documents
        places = np.arange(first, min(first + self._chunk_documents, count))
        return permute(places, count, make_key(_DOCUMENTS))

    def _count(self, chunk: int) -> tuple[int, int]:
        """Rows and tokens of a chunk."""
        lengths = self._lengths[self._documents(chunk)]
        tokens = int(lengths.sum(dtype=np.int64))
        full, rest = np.divmod(lengths, self._layout.room)
        rest = rest[rest > 0]
        if self._layout.packing == "padded":
            return int(full.sum(dtype=np.int64)) + len(rest), tokens
        capacity = self._layout.seq_len
        counts = np.bincount(rest + self._layout.overhead, minlength=capacity + 1)
        counts[capacity] += full.sum(dtype=np.int64)
        return best_fit(counts, capacity)[0], tokens

    def _plan(self, chunk: int) -> _Plan:
        plan = self._plans.pop(chunk, None) or self._make_plan(chunk)
        self._plans[chunk] = plan
        if len(self._plans) > _PLANS_KEPT:
            self._plans.popitem(last=False)
        return plan

    def _make_plan(self, chunk: int) -> _Plan:
        room, numbers = self._layout.room, self._documents(chunk)
        lengths = self._lengths[numbers].astype(np.int64)
        pieces = -(-lengths // room)
        documents = np.repeat(numbers, pieces)
        before = np.repeat(np.cumsum(pieces) - pieces, pieces)  # pieces of earlier documents
        starts = (np.arange(len(documents)) - before) * room
        counts = np.minimum(np.repeat(lengths, pieces) - starts, room)
        if self._layout.packing == "padded":
            return _Plan(documents, starts, counts, np.arange(len(documents) + 1))
        rows, bounds = self._rows_of(counts + self._layout.overhead)
        return _Plan(documents[rows], starts[rows], counts[rows], bounds)

    def _rows_of(self, sizes: Tokens) -> tuple[Tokens, Tokens]:
        """The pieces in the order of their rows, and the rows' bounds in that order."""
        capacity = self._layout.seq_len
        bins, placements = best_fit(np.bincount(sizes, minlength=capacity + 1), capacity)
        largest_first = np.argsort(-sizes, kind="stable")
        bin_of = np.concatenate(
            [np.repeat(np.arange(p.bins.start, p.bins.stop), p.each) for p in placements]
        )
        # The first bins hold the longest pieces; the first rows must be like any others, since
        # validation may stop after some.
        row_of = permute(bin_of, bins, make_key(_ROWS))
        by_row = np.argsort(row_of, kind="stable")
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row_of))])
        return largest_first[by_row], bounds
