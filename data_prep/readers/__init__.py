"""Input files as streams of documents and of records that cannot be read.

A bad record never ends a file early and never disappears: it comes out as a BadRecord.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from data_prep.formats import Format
from data_prep.input_config import Input
from data_prep.readers.arrow import ArrowReader, arrow_bounds
from data_prep.readers.delimited import DELIMITERS, DelimitedReader
from data_prep.readers.jsonl import JsonlReader
from data_prep.readers.parquet import ParquetReader, parquet_bounds
from data_prep.readers.quoting import record_bounds
from data_prep.readers.records import BadRecord, Document
from data_prep.readers.streams import opened, unpacked_size
from data_prep.readers.text import TextReader, text_bounds
from data_prep.readers.warc import WarcReader
from data_prep.sources import Segment, Source

__all__ = ["BadRecord", "Document", "SegmentReader", "bounds", "extent"]


class _Reader(Protocol):
    lines: int

    def __iter__(self) -> Iterator[Document | BadRecord]: ...


_READERS: dict[Format, Callable[[Source, Segment, Input], _Reader]] = {
    "text": TextReader,
    "jsonl": JsonlReader,
    "csv": DelimitedReader,
    "tsv": DelimitedReader,
    "parquet": ParquetReader,
    "arrow": ArrowReader,
    "warc": WarcReader,
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
    if source.format == "parquet":
        return parquet_bounds(source, options)[-1]
    return unpacked_size(source, options)


def bounds(source: Source, options: Input, step: int) -> list[int]:
    """Places between documents, about `step` apart, from 0 to the end of the file.

    Raises UserError where a table lacks the text's column, so that no unit runs in vain.
    """
    if source.format == "parquet":
        return _thinned(parquet_bounds(source, options), step)
    if source.format == "arrow":
        return arrow_bounds(source, options, step)
    if source.format in DELIMITERS:
        DelimitedReader(source, Segment(0, 0, 0), options).columns()
    if source.compression or source.size <= step or source.format == "warc":
        return [0, source.size]
    with opened(source, options) as stream:
        if source.format in DELIMITERS:
            limit = options.max_record_bytes
            return record_bounds(stream, source.size, step, DELIMITERS[source.format], limit)
        if source.format == "jsonl":
            options = options.model_copy(update={"document": "line"})
        return text_bounds(stream, source.size, step, options)


def _thinned(places: list[int], step: int) -> list[int]:
    """Of all places, the first behind each multiple of `step`, with both ends."""
    kept, target = [0], step
    for place in places[1:-1]:
        if place >= target:
            kept.append(place)
            target = (place // step + 1) * step
    return [*kept, places[-1]]
