"""Files of answers: JSONL, CSV or TSV, written so that a killed command can go on."""

import argparse
import contextlib
import csv
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import orjson

from runtime.errors import UserError

TABLES = {".csv": "csv", ".tsv": "tsv"}  # any other name gets JSON lines


class WrongLineError(UserError):
    """A line of the input that can't be read, however often it is tried."""


class Progress(NamedTuple):
    """How far a file of answers is."""

    examples: int
    cut: int  # texts among them that were too long


def write_row_of(
    kind: str, stream: IO[bytes], columns: list[str] | None = None
) -> Callable[[dict[str, Any]], None]:
    """What writes one answer to a stream.

    In a table a list or mapping is JSON text in its cell. columns: of a table that is gone on with;
    an empty list is filled by the first answer, whose names become the first line. What is written
    raises UserError for an answer that has a name more.
    """
    if kind == "jsonl":

        def write_line(row: dict[str, Any]) -> None:
            stream.write(orjson.dumps(row) + b"\n")

        return write_line
    known = [] if columns is None else columns

    def write(row: dict[str, Any]) -> None:
        if not known:
            known.extend(row)
            stream.write(_line(known, kind))
        more = [name for name in row if name not in known]
        if more:
            raise UserError(
                f"answer {row.get('index', '')} has {more[0]!r}, for which the table has no "
                "column; take an output that ends in .jsonl"
            )
        stream.write(_line([_cell(row.get(column)) for column in known], kind))

    return write


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _line(cells: Sequence[str], kind: str) -> bytes:
    if kind == "tsv":
        # The project's TSV has no quotes: a tab or an end of line in a value would make another.
        # One space for each, so that places in a text stay.
        return ("\t".join(re.sub(r"[\t\r\n]", " ", cell) for cell in cells) + "\n").encode()
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # with \r\n, so that cells with either are quoted
    return text.getvalue().removesuffix("\r\n").encode() + b"\n"


class Resumable:
    """An output file that grows in `.NAME.part` and takes its name when it is whole.

    Beside it `.NAME.state` says how much of it counts: after a kill the rest is cut off. It is
    begun anew where the input, the model or the options are not those that it was begun with.
    """

    def __init__(self, path: Path, directory: Path, options: argparse.Namespace) -> None:
        self._path, self._kind = path, TABLES.get(path.suffix.lower(), "jsonl")
        self.part = path.with_name(f".{path.name}.part")
        self._state = path.with_name(f".{path.name}.state")
        self._made_of = _made_of(directory, options)
        self.progress = Progress(0, 0)
        self._columns: list[str] = []
        self._stream: IO[bytes]
        self._write: Callable[[dict[str, Any]], None]

    def __enter__(self) -> Self:
        try:
            size = self._resume()
            if not size:
                self._state.unlink(missing_ok=True)  # of what the first byte will overwrite
            self._stream = self.part.open("r+b" if size else "wb")
            self._stream.truncate(size)
            self._stream.seek(size)
        except OSError as error:
            raise self._unwritable(error) from error
        self._write = write_row_of(self._kind, self._stream, self._columns)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # the rest is not counted; what failed is told already
            self._stream.close()
        # A wrong line stays wrong; a full disk may have room again, a GPU come back.
        if isinstance(error, WrongLineError):
            self.part.unlink(missing_ok=True)
            self._state.unlink(missing_ok=True)

    def write(self, row: dict[str, Any]) -> None:
        """Write one answer. Raises UserError where the disk is full."""
        try:
            self._write(row)
        except OSError as error:
            raise self._unwritable(error) from error

    def save(self, progress: Progress) -> None:
        """Count what is written as done."""
        try:
            self._stream.flush()
            state = {"made_of": self._made_of, "bytes": self._stream.tell(), **progress._asdict()}
            state["columns"] = self._columns
            temporary = self._state.with_name(f"{self._state.name}.tmp")
            temporary.write_bytes(orjson.dumps(state))
            temporary.replace(self._state)
        except OSError as error:
            raise self._unwritable(error) from error
        self.progress = progress

    def finish(self) -> None:
        """Give the whole file its name."""
        try:
            self._stream.close()
            self.part.replace(self._path)
        except OSError as error:
            raise self._unwritable(error) from error
        self._state.unlink(missing_ok=True)

    def _resume(self) -> int:
        """The bytes that count of what is there; sets the progress."""
        try:
            state = orjson.loads(self._state.read_bytes())
            size, progress = int(state["bytes"]), Progress(state["examples"], state["cut"])
            is_same = state["made_of"] == self._made_of and self.part.stat().st_size >= size
            columns = [str(name) for name in state["columns"]]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        if is_same:
            self.progress, self._columns = progress, columns
        return size if is_same else 0

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self._path}: cannot be written: {error.strerror}")


def _made_of(directory: Path, options: argparse.Namespace) -> str:
    """A digest of what the answers depend on: the files, by size and time, and the options."""
    digest = hashlib.sha256()
    files = [options.input, *sorted(path for path in directory.iterdir() if path.is_file())]
    for path in files:
        about = path.stat()
        digest.update(f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    kept = options.text_key, options.intents, options.batch_size, options.device
    digest.update(repr(kept).encode())
    return digest.hexdigest()
