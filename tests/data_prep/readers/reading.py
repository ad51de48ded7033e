"""Read a file as a run does: cut into segments, each read by its own reader."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from data_prep.formats import format_of
from data_prep.input_config import Input
from data_prep.readers import BadRecord, Document, SegmentReader, bounds
from data_prep.sources import Segment, Source


def read_all(path: Path, unit: int = 1 << 40, **options: Any) -> list[Document | BadRecord]:
    return [record for part in read_parts(path, unit, **options) for record in part]


def read_parts(path: Path, unit: int, **options: Any) -> list[list[Document | BadRecord]]:
    """The records of each segment; line numbers count from the start of the file."""
    chosen = Input(paths=(str(path),), **options)
    kind = format_of(path, chosen.format)
    assert kind is not None
    source = Source(path.name, path, kind, path.stat().st_size, 0, "0" * 64)
    parts, lines = [], 0
    for start, end in pairwise(bounds(source, chosen, unit)):
        reader = SegmentReader(source, Segment(0, start, end), chosen)
        parts.append([record._replace(line=record.line + lines) for record in reader])
        lines += reader.lines
    return parts


def texts(records: list[Document | BadRecord]) -> list[str]:
    return [record.text for record in records if isinstance(record, Document)]


def reasons(records: list[Document | BadRecord]) -> list[tuple[int, str]]:
    return [(record.line, record.reason) for record in records if isinstance(record, BadRecord)]
