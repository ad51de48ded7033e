"""metrics.jsonl, events.jsonl and their like: one JSON object per record. Torch-free, for reports.

All are appended to while a run goes on, and a crash may cut the last line.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import orjson

from runtime.errors import UserError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records of a metrics file; a last line cut by a crash is left out."""
    return [record for record in iter_records(path) if record is not None]


def iter_records(path: Path) -> Iterator[dict[str, Any] | None]:
    """The records one by one, in constant memory; None for each line that is none."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield _record(line)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def keep_until(path: Path, step: int) -> None:
    """Drop what comes after a step or is no record (a torn last line); replaced atomically."""
    if not path.exists():
        return
    temporary = path.with_suffix(".tmp")
    with path.open("rb") as old, temporary.open("wb") as new:
        for line in old:
            record = _record(line)
            if record is not None and _is_until(record.get("step", 0), step):
                new.write(line if line.endswith(b"\n") else line + b"\n")
    temporary.replace(path)


def _is_until(found: object, step: int) -> bool:
    return isinstance(found, int | float) and found <= step


class RecordFile:
    """A file of records that is only ever made longer, but for `rewind`.

    What a full disk does not take is kept and written later: whether a run can go on is for its
    saves to find out. is_made: the file is there from the first `rewind` on, without a record too.
    """

    def __init__(self, path: Path, *, is_made: bool = False) -> None:
        self._path, self._is_made = path, is_made
        self._pending = b""
        self._file: FileIO | None = None

    def rewind(self, step: int) -> None:
        """Drop what comes after a step. Raises UserError where the file cannot be written."""
        self._shut()
        self._pending = b""
        try:
            keep_until(self._path, step)
            if self._is_made:
                self._file = FileIO(self._path, "a")
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror}") from error

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, and what could not be written before."""
        self._pending += orjson.dumps(record) + b"\n"
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while self._pending:
                self._file = self._file or self._opened()
                self._pending = self._pending[self._file.write(self._pending) or 0 :]

    def _opened(self) -> FileIO:
        """The file to write on in, after the line that a crash has cut, if it has cut one."""
        file = FileIO(self._path, "a+")
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        return file

    def close(self) -> None:
        """Write what is left. Where the disk still takes none, what is lost is told."""
        self._shut()
        if self._pending:
            lost = self._pending.count(b"\n")
            print(f"warning: {self._path}: the last {lost} records are lost", file=sys.stderr)

    def _shut(self) -> None:
        self._write()
        if self._file is not None:
            self._file.close()
            self._file = None
