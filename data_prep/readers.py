"""Input files as streams of documents and of records that cannot be read.

A bad record never ends a file early and never disappears: it comes out as a BadRecord.
"""

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

import orjson

from data_prep.input_config import Input
from data_prep.plan import Segment, Source
from runtime.errors import UserError

_BOM = b"\xef\xbb\xbf"
_EXCERPT_CHARACTERS = 160


class Document(NamedTuple):
    """One document and where it starts."""

    text: str
    source: int
    line: int  # from 1, counted from the segment's start
    offset: int  # bytes from the file's (unpacked) start


class BadRecord(NamedTuple):
    """A record that is left out, and why."""

    source: int
    line: int  # from 1, counted from the segment's start
    reason: str
    excerpt: str


class _Raw(NamedTuple):
    data: bytes
    line: int
    offset: int


class SegmentReader:
    """Reads one segment; after it is exhausted, `lines` says how many lines it had."""

    def __init__(self, source: Source, segment: Segment, options: Input) -> None:
        self.source, self.segment, self.options = source, segment, options
        self.lines = 0

    def __iter__(self) -> Iterator[Document | BadRecord]:
        is_json = self.source.format == "jsonl"
        number = self.segment.source
        for raw in self._records():
            data = raw.data.removeprefix(_BOM) if raw.offset == 0 else raw.data
            if is_json:
                text, reason = _json_text(data, self.options.text_key)
            else:
                text, reason = _plain_text(data)
            if text is None:
                yield BadRecord(number, raw.line, reason, _excerpt(data))
            else:
                yield Document(text, number, raw.line, raw.offset)

    def _records(self) -> Iterator[_Raw]:
        unit = "line" if self.source.format == "jsonl" else self.options.document
        with opened(self.source) as stream:
            if unit == "file":
                data = stream.read()
                self.lines = data.count(b"\n") + (not data.endswith(b"\n"))
                yield _Raw(data, 1, 0)
            elif unit == "line":
                # A blank line separates records; it is none.
                yield from (_chomp(raw) for raw in self._raw_lines(stream) if raw.data.strip())
            else:
                yield from _paragraphs(self._raw_lines(stream))

    def _raw_lines(self, stream: IO[bytes]) -> Iterator[_Raw]:
        offset = self.segment.start
        if offset:
            stream.seek(offset)
        # A packed file is one segment, whatever size it unpacks to.
        end = float("inf") if self.source.is_gzip else self.segment.end
        for line in stream:
            self.lines += 1
            yield _Raw(line, self.lines, offset)
            offset += len(line)
            if offset >= end:
                break


def text_bytes(source: Source) -> int:
    """The size of a file's text once unpacked, in bytes."""
    if not source.is_gzip:
        return source.size
    total = 0
    with opened(source) as stream:
        while chunk := stream.read(1 << 20):
            total += len(chunk)
    return total


@contextlib.contextmanager
def opened(source: Source) -> Iterator[IO[bytes]]:
    """Open a source for reading, unpacked; failures become UserErrors that name the file."""
    try:
        with gzip.open(source.path) if source.is_gzip else source.path.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{source.name}: the gzip file is cut off or damaged ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise UserError(f"{source.name}: cannot be read: {error.strerror or error}") from error


def _chomp(raw: _Raw) -> _Raw:
    return raw._replace(data=raw.data.removesuffix(b"\n").removesuffix(b"\r"))


def _paragraphs(lines: Iterator[_Raw]) -> Iterator[_Raw]:
    first: _Raw | None = None
    block: list[bytes] = []
    for raw in lines:
        if raw.data.strip():
            first = first or raw
            block.append(raw.data)
        elif first:
            yield _chomp(first._replace(data=b"".join(block)))
            first, block = None, []
    if first:
        yield _chomp(first._replace(data=b"".join(block)))


def _plain_text(data: bytes) -> tuple[str | None, str]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None, "invalid_utf8"
    return (text, "") if text.strip() else (None, "empty_text")


def _json_text(data: bytes, text_key: str) -> tuple[str | None, str]:
    """The document in one JSON line, or None and the reason."""
    record: Any
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            # Python's own writer emits NaN and Infinity, which orjson rightly refuses.
            record = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError:
            return None, "invalid_utf8"
        except (ValueError, RecursionError):
            return None, "invalid_json"
    if not isinstance(record, dict):
        return None, "not_an_object"
    if text_key not in record:
        return None, "missing_field"
    text = record[text_key]
    if text is None:
        return None, "null_text"
    if not isinstance(text, str):
        return None, "not_a_string"
    if not text.strip():
        return None, "empty_text"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # "\ud800" is JSON but no character
        return None, "invalid_utf8"
    return text, ""


def _excerpt(data: bytes) -> str:
    return data[: 4 * _EXCERPT_CHARACTERS].decode("utf-8", "replace")[:_EXCERPT_CHARACTERS]
