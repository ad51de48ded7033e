"""Input files as streams of documents and of records that cannot be read.

A bad record never ends a file early and never disappears: it comes out as a BadRecord.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from data_prep.formats import Format
from data_prep.input_config import Input
from data_prep.readers.jsonl import JsonlReader
from data_prep.readers.records import BadRecord, Document
from data_prep.readers.streams import unpacked_size
from data_prep.readers.text import TextReader
from data_prep.sources import Segment, Source

__all__ = ["BadRecord", "Document", "SegmentReader", "extent"]


class _Reader(Protocol):
    lines: int

    def __iter__(self) -> Iterator[Document | BadRecord]: ...


_READERS: dict[Format, Callable[[Source, Segment, Input], _Reader]] = {
    "text": TextReader,
    "jsonl": JsonlReader,
}


class SegmentReader:
    """Reads one segment; after it is exhausted, `lines` says how many lines it had."""

    def __init__(self, source: Source, segment: Segment, options: Input) -> None:
        self.source, self.segment, self.options = source, segment, options
        self.lines = 0

    def __iter__(self) -> Iterator[Document | BadRecord]:
        maker = _READERS[self.source.format]
        reader = maker(self.source, self.segment, self.options)
        yield from reader
        self.lines = reader.lines


def extent(source: Source, options: Input) -> int:
    """The end of a file in the units of `Document.offset`."""
    return unpacked_size(source, options)
