"""What the loader gives: samples made of segments, laid out as an objective wants them."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt

from runtime.errors import EXIT_BAD_INPUT, UserError

Tokens = npt.NDArray[np.int64]
Packing = Literal["concat", "documents", "best_fit", "padded"]

NO_SENTENCES: Tokens = np.zeros(0, dtype=np.int64)
NO_SENTENCES.flags.writeable = False


class Segment(NamedTuple):
    """An unbroken stretch of one document; in "concat" and "documents" of the joined documents.

    `tokens` (n,) int64. `sentence_ends` (m,) int64: the exclusive ends of its sentences within
    `tokens`, the last one n; empty where the data has no sentence index. A sentence that the
    segment's bounds cut counts with the part that is inside.
    """

    tokens: Tokens
    previous: int | None  # the token before it in the same document; None at the document's start
    source: int  # position in the loader's list of sources
    document: int  # number in the source's split; of a stream window, its first document
    sentence_ends: Tokens = NO_SENTENCES


@dataclass(frozen=True, slots=True)
class Sample:
    """What becomes one row of a batch."""

    index: int | None  # unique over all epochs; None: a padding row of the last validation round
    segments: tuple[Segment, ...]


class Layout(NamedTuple):
    """How an objective wants its samples.

    "concat" and "documents" are windows of the split's documents joined end to end. "best_fit"
    and "padded" are pieces of documents: one that fits is never cut, a longer one is cut into
    full pieces and a rest; several pieces make a sample, or one.
    """

    packing: Packing = "concat"
    seq_len: int = 512  # positions of a row
    overhead: int = 0  # positions that the objective adds to a segment ([CLS] and [SEP]: 2)
    lookahead: int = 0  # tokens after the window that it wants too; stream windows alone
    drops_eod: bool = False  # leave out each document's end-of-document token; pieces alone

    @property
    def by_document(self) -> bool:
        """Whether samples are made of pieces of documents rather than of the joined stream."""
        return self.packing in ("best_fit", "padded")

    @property
    def room(self) -> int:
        """The most tokens that one segment can hold (without the lookahead)."""
        return self.seq_len - self.overhead


class Seen(NamedTuple):
    """What a segment was made of: one for each sample of a stream, one for each piece else."""

    source: int  # position in the loader's list of sources
    documents: range  # of that source's split
    tokens: range  # of that source's split
    sample: int | None = None  # the global sample number


class PackingReport(NamedTuple):
    """One epoch in numbers. Nothing is left out: a cut document is in several segments, whole."""

    samples: int
    segments: int
    documents: int
    cut_documents: int | None  # documents that do not lie in one segment; None: not counted
    tokens: int
    positions: int  # samples × seq_len
    utilisation: float  # share of the positions that is not padding

    def __str__(self) -> str:
        cut = "" if self.cut_documents is None else f" ({self.cut_documents:,} of them cut)"
        return (
            f"{self.samples:,} samples of {self.documents:,} documents{cut}, {self.tokens:,} "
            f"tokens, {100 * self.utilisation:.1f} % of the positions in use"
        )


class Cutting(Protocol):
    """One split cut into samples, each with a number that no seed changes."""

    size: int  # samples of an epoch
    tokens: int  # that an epoch holds

    def shuffled(self, seed: int, epoch: int, places: Tokens) -> Tokens:
        """The numbers of the samples at some places of an epoch. (n,) → (n,)"""
        ...

    def segments(self, number: int) -> tuple[Segment, ...]:
        """What one sample consists of."""
        ...

    def seen(self, number: int) -> list[Seen]:
        """Where that comes from."""
        ...

    def tokens_before(self, seed: int, epoch: int, place: int) -> int:
        """The tokens of the samples at the first places of an epoch, without any lookahead."""
        ...

    def report(self, count_cut: bool = True) -> PackingReport:
        """One epoch in numbers."""
        ...


def check_layout(layout: Layout) -> None:
    """Refuse a layout that cannot be. Raises UserError for a row without room for a token."""
    if layout.room < 1:
        raise UserError(
            f"seq_len={layout.seq_len} leaves no room for text beside the {layout.overhead} tokens "
            f"that the objective adds; expected {layout.overhead + 1} or more",
            status=EXIT_BAD_INPUT,
        )
    if layout.packing not in get_args(Packing):
        raise ValueError(f"packing {layout.packing!r} is none of {get_args(Packing)}")
    if layout.by_document and layout.lookahead:
        raise ValueError(f"lookahead goes with windows of a stream, not with {layout.packing}")
    if layout.drops_eod and not layout.by_document:
        raise ValueError(f"drops_eod goes with pieces of documents, not with {layout.packing}")


def report_of(
    layout: Layout, samples: int, segments: int, tokens: int, documents: int, cut: int | None
) -> PackingReport:
    """Fill in what follows from the other counts."""
    positions = samples * layout.seq_len
    used = tokens + layout.overhead * segments
    return PackingReport(
        samples,
        segments,
        documents=documents,
        cut_documents=cut,
        tokens=tokens,
        positions=positions,
        utilisation=used / max(positions, 1),
    )


def ends_within(ends: Tokens, start: int, count: int) -> Tokens:
    """Sentence ends of a document as seen by tokens [start, start + count) of it; last: count."""
    if not len(ends) or not count:
        return NO_SENTENCES
    inside = ends[np.searchsorted(ends, start, "right") : np.searchsorted(ends, start + count)]
    return np.append(inside - start, count)
