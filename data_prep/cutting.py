"""Where inputs are cut into segments: between documents, about a work unit apart."""

from itertools import pairwise
from typing import TYPE_CHECKING

from data_prep import files
from data_prep.readers.text import text_bounds
from data_prep.sources import Segment, Source

if TYPE_CHECKING:
    from data_prep.config import DataPrepConfig


def cut(number: int, source: Source, config: "DataPrepConfig") -> list[Segment]:
    """Segments of about `work_unit_bytes` of source `number`."""
    step = config.work_unit_bytes
    if source.compression or source.size <= step:
        return [Segment(number, 0, source.size)] if source.size else []
    document = config.input.document if source.format == "text" else "line"
    with files.opened(source.path, source.name) as stream:
        bounds = text_bounds(stream, source.size, step, document)
    return [Segment(number, a, b) for a, b in pairwise(bounds) if b > a]


def weight(source: Source, segment: Segment) -> int:
    """Bytes of text in a segment, estimated where the file is packed."""
    return (segment.end - segment.start) * source.usual_ratio
