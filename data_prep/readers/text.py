"""Plain text: a document is a file, a paragraph or a line."""

from collections.abc import Iterator
from typing import IO

from data_prep.input_config import Input
from data_prep.readers.lines import Line, next_line_end, split_lines
from data_prep.readers.records import (
    EXCERPT_BYTES,
    BadRecord,
    Document,
    excerpt,
    undecodable,
)
from data_prep.readers.streams import end_of, opened, without_mark
from data_prep.sources import Segment, Source

_CHUNK_BYTES = 1 << 20


class TextReader:
    """Reads a segment of a text file."""

    def __init__(self, source: Source, segment: Segment, options: Input) -> None:
        self._source, self._segment, self._options = source, segment, options
        self.lines = 0

    def __iter__(self) -> Iterator[Document | BadRecord]:
        with opened(self._source, self._options) as stream:
            if self._options.document == "file":
                yield self._whole(stream)
                return
            start, end = self._segment.start, end_of(self._source, self._segment)
            lines = self._numbered(split_lines(stream, start, end, self._options.max_record_bytes))
            if self._options.document == "line":
                yield from (self._record(line, number) for number, line in lines if _has_text(line))
            else:
                yield from self._paragraphs(lines)

    def _numbered(self, lines: Iterator[Line]) -> Iterator[tuple[int, Line]]:
        for line in lines:
            self.lines += 1
            yield self.lines, line

    def _paragraphs(self, lines: Iterator[tuple[int, Line]]) -> Iterator[Document | BadRecord]:
        block: list[bytes] = []
        first = size = offset = 0
        too_long = False
        for number, line in lines:
            if _has_text(line):
                if not first:
                    first, offset = number, line.offset
                too_long = too_long or line.too_long
                size += len(line.data) + 1
                if size <= self._options.max_record_bytes + 1:
                    block.append(line.data)
                else:
                    too_long, block = True, [b"\n".join(block)[:EXCERPT_BYTES]]
            elif first:
                yield self._record(Line(b"\n".join(block), offset, too_long), first)
                block, first, size, too_long = [], 0, 0, False
        if first:
            yield self._record(Line(b"\n".join(block), offset, too_long), first)

    def _whole(self, stream: IO[bytes]) -> Document | BadRecord:
        """The file as one document, of which no more than the limit is held."""
        parts: list[bytes] = []
        size = 0
        last = b"\n"
        while chunk := stream.read(_CHUNK_BYTES):
            self.lines += chunk.count(b"\n")
            size += len(chunk)
            last = chunk[-1:]
            parts.append(chunk)
            if size > self._options.max_record_bytes:
                parts = [b"".join(parts)[:EXCERPT_BYTES]]
        self.lines += last != b"\n"
        too_long = size > self._options.max_record_bytes
        return self._record(Line(b"".join(parts), 0, too_long), 1, is_file=True)

    def _record(self, line: Line, number: int, *, is_file: bool = False) -> Document | BadRecord:
        encoding = self._options.encoding
        data = without_mark(line.data, line.offset, self._source, encoding)
        if not is_file:
            data = data.removesuffix(b"\r")
        reason = ""
        if line.too_long:
            reason = "too_long"
        elif b"\0" in data:  # no text has them: it is some other kind of file
            reason = "nul_byte"
        else:
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError:
                reason = undecodable(encoding)
            else:
                if text and not text.isspace():
                    return Document(text, self._segment.source, number, line.offset)
                reason = "empty_text"
        return BadRecord(self._segment.source, number, reason, excerpt(data, encoding))


def _has_text(line: Line) -> bool:
    """Whether a line is not blank; of one that is too long, nobody looked at the whole."""
    return line.too_long or bool(line.data.strip())


def text_bounds(stream: IO[bytes], size: int, step: int, options: Input) -> list[int]:
    """Places between documents, about `step` bytes apart, from 0 to `size`.

    A document is a line, unless the options say that it is a paragraph or a file.
    """
    document, limit = options.document, options.max_record_bytes
    bounds = [0]
    for target in range(step, size, step) if document != "file" else ():
        if target <= bounds[-1]:
            continue  # one document was longer than a unit
        end, is_last = next_line_end(stream, target - 1)
        while document == "paragraph" and not is_last:
            after, is_last = next_line_end(stream, end)
            stream.seek(end)
            is_blank = after - end <= limit + 1 and _is_blank(stream, after - end)
            end = after
            if is_blank:
                break
        bounds.append(end)
    return [*bounds, size]


def _is_blank(stream: IO[bytes], size: int) -> bool:
    """Whether the next `size` bytes are white space; few are read where they are not."""
    while size > 0:
        chunk = stream.read(min(size, 1 << 12))
        if not chunk or chunk.strip():
            return False
        size -= len(chunk)
    return True
