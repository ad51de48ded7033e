"""Where inputs are cut into segments: between documents, about a work unit apart."""

from itertools import pairwise
from typing import TYPE_CHECKING

from data_prep.readers import bounds
from data_prep.sources import Segment, Source

if TYPE_CHECKING:
    from data_prep.config import DataPrepConfig


def cut(number: int, source: Source, config: "DataPrepConfig") -> list[Segment]:
    """Segments of about `work_unit_bytes` of source `number`."""
    if not source.size:
        return []
    places = bounds(source, config.input, config.work_unit_bytes)
    return [Segment(number, start, end) for start, end in pairwise(places) if end > start]


def weight(source: Source, segment: Segment) -> int:
    """Bytes of text in a segment, estimated where the file is packed."""
    return (segment.end - segment.start) * source.usual_ratio
