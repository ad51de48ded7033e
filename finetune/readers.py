"""Labelled data files as streams of records: JSONL, CSV and TSV, each also packed with gzip."""

import contextlib
import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from runtime.errors import EXIT_BAD_INPUT, UserError

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
TEXT_SUFFIXES = (".txt",)
MAX_FIELD_CHARACTERS = 1 << 27


class Record(NamedTuple):
    """One record: the values asked for, or what is wrong with it."""

    line: int  # from 1; of a CSV record that spans lines, the last
    values: dict[str, Any]
    problem: str | None = None


def read_records(
    path: Path,
    keys: Sequence[str],
    also: Sequence[str] = (),
    *,
    columns: Sequence[str] | None = None,
) -> Iterator[Record]:
    """Stream a file's records with the values of `keys`; wrong records come with a problem.

    also: keys whose values are taken where a record, or the table, has them. columns: their names
    in a CSV or TSV file without a header.
    A TSV line is split at its tabs and nothing else: quotes in it are text. Raises UserError where
    the file as a whole can't be read.
    """
    kind = _kind(path)
    with opened(path) as stream:
        if kind == "jsonl":
            yield from _jsonl(stream, keys, also)
        else:
            yield from _table(path, stream, kind, keys, also, columns)


def _kind(path: Path) -> str:
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise unreadable(path, f"its name must end in {', '.join(SUFFIXES)}, or one of them + .gz")
    return SUFFIXES[suffix]


def suffix_of(path: Path) -> str:
    """How the name of a file ends, .gz left out."""
    return (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()


def unreadable(path: Path, reason: str) -> UserError:
    """The error of a file that can't be read as a whole."""
    return UserError(f"{path}: {reason}", status=EXIT_BAD_INPUT)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a data file, unpacked where its name ends in .gz; its defects are UserErrors."""
    try:
        unpack: Any = gzip.open if path.suffix == ".gz" else Path.open
        with unpack(path, "rb") as stream:
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise unreadable(path, f"the gzip file is cut off or damaged ({error})") from error
    except UnicodeDecodeError as error:
        raise unreadable(path, f"not UTF-8 text ({error.reason}); convert it") from error
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise unreadable(path, reason or str(error)) from error


def _jsonl(stream: IO[bytes], keys: Sequence[str], also: Sequence[str]) -> Iterator[Record]:
    for line, data in enumerate(stream, start=1):
        if line == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if not data.strip():  # a blank line separates records; it is none
            continue
        try:
            record = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            yield Record(line, {}, f"not valid JSON: {str(error).partition(':')[0]}")
            continue
        if not isinstance(record, dict):
            yield Record(line, {}, f"expected a JSON object, got {type(record).__name__}")
            continue
        problem = next((_missing("key", k, list(record)) for k in keys if k not in record), None)
        wanted = [*keys, *(name for name in also if name in record)]
        yield Record(line, {} if problem else {k: record[k] for k in wanted}, problem)


def _table(
    path: Path,
    stream: IO[bytes],
    kind: str,
    keys: Sequence[str],
    also: Sequence[str],
    columns: Sequence[str] | None,
) -> Iterator[Record]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    if kind == "csv":
        rows = csv.reader(text, strict=True)
    else:
        rows = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        first = next(rows, [])
        # A file may have a header though others of its kind have none.
        if columns is None:
            has_header = True
        elif keys:
            has_header = set(keys) <= set(first)
        else:  # nothing is asked for that each file must have
            has_header = set(first) <= set(columns)
        header = first if has_header or columns is None else list(columns)
        missing = [_missing("column", key, header) for key in keys if key not in header]
        if missing:
            yield from (Record(1, {}, problem) for problem in missing)
            return
        wanted = [*keys, *(name for name in also if name in header)]
        at = {key: header.index(key) for key in wanted}
        expected = "the header's" if has_header else "task.columns'"
        for row in rows if has_header else itertools.chain([first], rows):
            if len(row) == len(header):
                yield Record(rows.line_num, {key: row[at[key]] for key in wanted})
            elif row:  # a blank line is none
                problem = f"{len(row)} columns, expected {expected} {len(header)}"
                yield Record(rows.line_num, {}, problem)
    except csv.Error as error:
        raise unreadable(path, f"line {rows.line_num}: not valid {kind.upper()}: {error}") from None


def _missing(what: str, key: str, present: list[str]) -> str:
    near = get_close_matches(key, present, n=1)
    has = ", ".join(map(repr, present[:8])) or "none"
    return f"no {what} {key!r}; it has {has}" + (f"; did you mean {near[0]!r}?" if near else "")
