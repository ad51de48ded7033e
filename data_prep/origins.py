"""Where the documents of a shard come from: NAME.origin.zst beside NAME.bin.

Two int32 arrays through zstd: for each document the segment of the unit, and the line (in Parquet
the row, in WARC the record) counted from that segment's start. units.json has the segments.
"""

import hashlib
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from data_prep.atomic import write_atomic
from data_prep.manifest import FileEntry, Manifest, ShardEntry, load_units
from runtime.errors import UserError

Ints = npt.NDArray[np.int64]


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


def origin(directory: Path, listed: Manifest, shard: ShardEntry, document: int) -> Origin | None:
    """Where a document of a shard comes from; None for data made by an earlier version."""
    units = load_units(directory, listed)
    if shard.origins is None or units is None:
        return None
    path = directory / shard.origins.file
    try:
        data = zstandard.ZstdDecompressor().decompress(
            path.read_bytes(), max_output_size=8 * shard.documents
        )
        segments, lines = np.frombuffer(data, dtype="<i4").reshape(2, shard.documents)
        segment = units[shard.unit].segments[int(segments[document])]
    except (OSError, ValueError, IndexError, zstandard.ZstdError) as error:
        raise UserError(f"{path}: cannot be read: {error}; prepare the data again") from error
    return Origin(listed.sources[segment.source].path, segment.first_line + int(lines[document]))
