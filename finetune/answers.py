"""Files of answers: JSONL, CSV or TSV, written so that a killed command can go on."""

import argparse
import csv
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import orjson

from runtime.errors import UserError

TABLES = {".csv": "csv", ".tsv": "tsv"}  # any other name gets JSON lines


class Progress(NamedTuple):
    """How far a file of answers is."""

    examples: int
    cut: int  # texts among them that were too long


def write_row_of(kind: str, stream: IO[bytes], *, has_header: bool = True) -> Callable[..., None]:
    """What writes one answer to a stream.

    In a table the first answer names the columns, a list or mapping is JSON text in its cell, and
    `has_header` false writes no line of names, where they are there already.
    """

    def write_line(row: dict[str, Any]) -> None:
        stream.write(orjson.dumps(row) + b"\n")

    if kind == "jsonl":
        return write_line
    columns: list[str] = []

    def write(row: dict[str, Any]) -> None:
        text = io.StringIO()
        table = csv.writer(text, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
        if not columns:
            columns.extend(row)
            if has_header:
                table.writerow(columns)
        table.writerow([_cell(row.get(column), kind) for column in columns])
        stream.write(text.getvalue().encode())

    return write


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    # The project's TSV has no quotes: a tab or an end of line in a value would make another.
    return " ".join(text.split()) if kind == "tsv" and set(text) & set('\t\r\n"') else text


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
        self._stream: IO[bytes]
        self.write: Callable[[dict[str, Any]], None]

    def __enter__(self) -> Self:
        try:
            size = self._resume()
            self._stream = self.part.open("r+b" if size else "wb")
            self._stream.truncate(size)
            self._stream.seek(size)
        except OSError as error:
            raise self._unwritable(error) from error
        self.write = write_row_of(self._kind, self._stream, has_header=not size)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        if isinstance(error, UserError):  # a wrong line stays wrong: nothing to go on with
            self.part.unlink(missing_ok=True)
            self._state.unlink(missing_ok=True)

    def save(self, progress: Progress) -> None:
        """Count what is written as done."""
        try:
            self._stream.flush()
            state = {"made_of": self._made_of, "bytes": self._stream.tell(), **progress._asdict()}
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
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        if is_same:
            self.progress = progress
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
    digest.update(repr((options.text_key, options.intents)).encode())
    return digest.hexdigest()
