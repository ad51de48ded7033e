"""Where the documents of a shard come from: NAME.origin.zst beside NAME.bin.

Two int32 arrays through zstd: for each document the segment of the unit, and the line (in Parquet
the row, in WARC the record) counted from that segment's start. units.json has the segments.
"""

import hashlib
from array import array
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from data_prep.atomic import write_atomic
from data_prep.manifest import FileEntry, UnitEntry, load, load_units
from data_prep.shards import Shards
from runtime.errors import UserError

Ints = npt.NDArray[np.integer[Any]]


class Origin(NamedTuple):
    """An input file, and a line, row or record in it, from 1."""

    path: str
    line: int


class OriginWriter:
    """Collects the origins of one shard's documents: eight bytes each, in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._segments, self._lines = array("i"), array("i")

    @property
    def count(self) -> int:
        """Documents so far."""
        return len(self._lines)

    def add_many(self, segments: Ints, lines: Ints) -> None:
        """Note documents. (n,), (n,)"""
        self._segments.frombytes(segments.astype(np.int32).tobytes())
        self._lines.frombytes(lines.astype(np.int32).tobytes())

    def finish(self) -> FileEntry:
        """Make the file durable and visible, and describe it."""
        both = np.array([self._segments, self._lines], dtype="<i4")
        data = zstandard.ZstdCompressor(level=3).compress(both.tobytes())
        write_atomic(self._path, data)
        return FileEntry(
            file=self._path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )


def origin_of(shards: Shards, document: int) -> Origin | None:
    """Where a document of a split comes from; None for data made by an earlier version."""
    shard, number = shards.place_of(document)
    entry = shards.manifest.of_split(shards.split)[shard]
    if entry.origins is None:
        return None
    found = _read(shards.directory / entry.origins.file, entry.documents)
    units = _units(shards.directory, shards.fingerprint)
    if units is None:
        return None
    segment = units[entry.unit].segments[int(found[0, number])]
    source = shards.manifest.sources[segment.source]
    return Origin(source.path, segment.first_line + int(found[1, number]))


@lru_cache(maxsize=16)
def _read(path: Path, documents: int) -> Ints:
    """Segment and line of each document. (2, documents)"""
    try:
        data = zstandard.ZstdDecompressor().decompress(
            path.read_bytes(), max_output_size=8 * documents
        )
        return np.frombuffer(data, dtype="<i4").reshape(2, documents)
    except (OSError, ValueError, zstandard.ZstdError) as error:
        raise UserError(f"{path}: cannot be read: {error}; prepare the data again") from error


@lru_cache(maxsize=4)
def _units(directory: Path, _fingerprint: str) -> list[UnitEntry] | None:
    return load_units(directory, load(directory))
