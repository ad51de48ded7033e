"""What became of the documents that are not in the shards: decisions of rules, and bad records.

Bad records (unreadable) lie in quarantine.jsonl. What rules left out lies in one packed file of
JSON lines per unit. Both name the file and the line.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson
import zstandard

from data_prep.atomic import aside, publish
from data_prep.manifest import FileEntry
from runtime.errors import UserError

_LEVEL = 3


class Decision(NamedTuple):
    """One document that a rule left out, or cut, and why."""

    segment: int  # position in the unit
    line: int  # from 1, counted from the segment's start
    rule: str
    reason: str
    value: str  # what was measured
    excerpt: str
    duplicate_of: tuple[int, int] | None = None  # unit, and document within it before rules

    @property
    def name(self) -> str:
        """How it is counted."""
        return f"{self.rule}/{self.reason}"


class PackedLines:
    """Writes JSON lines through zstd; the file appears complete or not at all."""

    def __init__(self, path: Path) -> None:
        self._path, self._aside = path, aside(path)
        self._file = self._aside.open("wb", buffering=1 << 18)
        self._hash = hashlib.sha256()
        self._size = 0
        self._packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj()

    def __enter__(self) -> "PackedLines":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing behind, unless the file was finished."""
        self._file.close()
        self._aside.unlink(missing_ok=True)  # already renamed if `finish` was reached

    def add(self, value: Any) -> None:
        """Append one line."""
        self._write(self._packer.compress(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)))

    def finish(self) -> FileEntry:
        """Make the file durable and visible, and describe it."""
        self._write(self._packer.flush())
        publish(self._file, self._aside, self._path)
        return FileEntry(file=self._path.name, bytes=self._size, sha256=self._hash.hexdigest())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)


def packed_lines(path: Path) -> Iterator[Any]:
    """Yield what `PackedLines` wrote. Raises UserError naming the file."""
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
            for line in io.BufferedReader(cast(io.RawIOBase, stream), 1 << 18):
                yield orjson.loads(line)
    except (OSError, zstandard.ZstdError, orjson.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; prepare the data again") from error
