"""Where the records of CSV and TSV end, and where reading goes on after a stray quote.

A quoted field may hold line breaks. Where its quote is not closed before the file ends or the
record is too long, or is closed inside a field, its first line is a record of its own, and the
next line begins another one. So a stray quote costs one line, not all that follow it. Whether a
record ends at a line depends only on what comes after its start: a file reads the same however it
is cut.
"""

import re
from collections.abc import Iterator
from typing import IO, NamedTuple

from data_prep.readers.lines import Line, split_lines
from data_prep.readers.records import EXCERPT_BYTES

_QUOTE = 0x22
_RETURN = 0x0D
_INSIDE_QUOTES = re.compile(rb'(?:[^"]++|"")*+')


class Row(NamedTuple):
    """One record, without its last \\n."""

    data: bytes  # its beginning, where it is too long
    line: int  # of its first byte, from 1 at the place where reading began
    offset: int
    too_long: bool
    last_line: int


class _Quotes:
    """Follows the csv module's states over bytes, whatever parts they come in."""

    def __init__(self, delimiter: bytes) -> None:
        self.delimiter = delimiter
        self.state = "field starts"

    @property
    def is_open(self) -> bool:
        """Whether a line break here belongs to a quoted field."""
        return self.state == "quoted"

    @property
    def is_wrong(self) -> bool:
        """Whether a quoted field went on after its closing quote."""
        return self.state == "wrong"

    def end_record(self) -> None:
        self.state = "field starts"

    def feed(self, data: bytes) -> None:
        state, at, size = self.state, 0, len(data)
        while at < size and state != "wrong":
            if state == "unquoted":
                at = data.find(self.delimiter, at) + 1
                if not at:
                    break
                state = "field starts"
            elif state == "quoted":
                rest = _INSIDE_QUOTES.match(data, at)
                at = rest.end() + 1 if rest else size
                if at <= size:
                    state = "quote in quoted"
            elif data[at] == _QUOTE:  # the first of a field, or the second of a doubled one
                state, at = "quoted", at + 1
            elif data[at] == self.delimiter[0]:
                state, at = "field starts", at + 1
            elif state == "quote in quoted" and data[at] != _RETURN:
                state = "wrong"
            else:
                state = "unquoted"
        self.state = state


class _Splitter:
    """Splits lines into records; holds no more than one record of the greatest length."""

    def __init__(self, stream: IO[bytes], start: int, delimiter: str, limit: int) -> None:
        self._limit = limit
        self._quotes = _Quotes(delimiter.encode())  # over the record that has begun
        self._alone = _Quotes(delimiter.encode())  # over one line, as if a record began there
        self._lines = split_lines(stream, start, float("inf"), limit, self._feed_both)
        # Lines whose end is inside quotes. The record that has begun is what lies behind `_at`.
        self._window = bytearray()
        self._at = 0
        self._first = self._offset = 0  # of that record: number of its line, place of its byte

    def __iter__(self) -> Iterator[Row]:
        quotes = self._quotes
        for number, line in enumerate(self._lines, start=1):
            if not line.too_long and (quotes.is_open or b'"' in line.data):
                quotes.feed(line.data)
            if self._at < len(self._window):
                yield from self._continued(line, number)
            elif quotes.is_open or quotes.is_wrong:
                yield from self._begun(line, number)
            else:
                quotes.end_record()
                yield Row(line.data, number, line.offset, line.too_long, number)
            self._alone.end_record()
        yield from self._rows(0, is_lost=True)

    def _feed_both(self, data: bytes) -> None:
        self._quotes.feed(data)
        self._alone.feed(data)

    def _begun(self, line: Line, number: int) -> Iterator[Row]:
        """Take the first line of a record; what `_quotes` says of it counts."""
        self._first, self._offset = number, line.offset
        if self._quotes.is_open and not line.too_long:
            self._window[:] = line.data + b"\n"
            self._at = 0
            return
        self._quotes.end_record()
        yield Row(line.data, number, line.offset, line.too_long, number)

    def _continued(self, line: Line, number: int) -> Iterator[Row]:
        """Take a later line of a record."""
        quotes = self._quotes
        size = len(line.data) if not line.too_long else self._limit + 1
        is_over = len(self._window) - self._at + size > self._limit
        if quotes.is_wrong or (quotes.is_open and is_over):
            yield from self._rows(size, is_lost=quotes.is_wrong)
            if self._at == len(self._window):
                if not line.too_long:
                    self._alone.feed(line.data)
                quotes.state = self._alone.state
                yield from self._begun(line, number)
                return
        if quotes.is_open:
            self._window += line.data + b"\n"
            return
        data = bytes(self._window[self._at :]) + line.data
        yield Row(
            data[:EXCERPT_BYTES] if is_over else data, self._first, self._offset, is_over, number
        )
        self._window.clear()
        self._at = 0
        quotes.end_record()

    def _rows(self, size: int, *, is_lost: bool) -> Iterator[Row]:
        """Yield the window's lines, up to one where a record begins that may still end well.

        A record that is open at the end of one of these lines is in the state in which the first
        one was there, and goes as that does. size: bytes of the line after them. is_lost: whether
        the quote is never closed; or else the first record is only too long.
        """
        while self._at < len(self._window):
            end = self._window.index(b"\n", self._at)
            data = bytes(self._window[self._at : end])
            alone = _Quotes(self._quotes.delimiter)
            alone.feed(data)
            is_short = len(self._window) - self._at + size <= self._limit
            if alone.is_open and is_short and not is_lost:
                break
            yield Row(data, self._first, self._offset, False, self._first)
            self._first += 1
            self._offset += len(data) + 1
            self._at = end + 1
        if 2 * self._at > len(self._window):  # not for each line: what is left must be moved
            del self._window[: self._at]
            self._at = 0


def split_records(
    stream: IO[bytes], span: tuple[int, float], delimiter: str, limit: int
) -> Iterator[Row]:
    """Yield the records that begin in bytes [start, end), both between records.

    The last one is read to its end, also behind the span. limit: bytes; of a longer record only
    the beginning is kept.
    """
    for row in _Splitter(stream, span[0], delimiter, limit):
        if row.offset >= span[1]:
            return
        yield row


def record_bounds(stream: IO[bytes], size: int, step: int, delimiter: str, limit: int) -> list[int]:
    """Places between records, about `step` bytes apart, from 0 to `size`, in one pass."""
    bounds = [0]
    target = step
    for record in split_records(stream, (0, size), delimiter, limit):
        if record.offset >= target:
            bounds.append(record.offset)
            target = (record.offset // step + 1) * step
    return [*bounds, size]
