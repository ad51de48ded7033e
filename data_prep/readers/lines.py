"""Lines of a stream, of which none is held in memory beyond a limit."""

from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from data_prep.readers.records import EXCERPT_BYTES

_CHUNK_BYTES = 1 << 18


class Line(NamedTuple):
    """One line without its \\n."""

    data: bytes  # its beginning, where it is too long
    offset: int  # bytes from the stream's start
    too_long: bool


def split_lines(
    stream: IO[bytes],
    start: int,
    end: float,
    limit: int,
    dropped: Callable[[bytes], None] = lambda _: None,
) -> Iterator[Line]:
    """Yield the lines from byte `start` on that begin before byte `end`.

    limit: bytes; of a longer line only the beginning is kept. `dropped` is called with all of
    such a line, part by part, before it is yielded.
    """
    if start:
        stream.seek(start)
    offset = start
    pending: list[bytes] = []  # the parts of the line that no chunk has ended yet
    size = 0

    def add(part: bytes) -> None:
        nonlocal pending, size
        was_short = size <= limit
        size += len(part)
        pending.append(part)
        if size > limit:
            whole = b"".join(pending)
            dropped(whole if was_short else part)
            pending = [whole[:EXCERPT_BYTES]]

    while chunk := stream.read(_CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        add(first)
        if not others:
            continue
        yield Line(b"".join(pending), offset, size > limit)
        offset += size + 1
        last = others.pop()
        for data in others:
            if offset >= end:
                return
            size = len(data)
            if size > limit:
                dropped(data)
                data = data[:EXCERPT_BYTES]
            yield Line(data, offset, size > limit)
            offset += size + 1
        if offset >= end:
            return
        pending, size = [], 0
        add(last)
    if size and offset < end:
        yield Line(b"".join(pending), offset, size > limit)


def next_line_end(stream: IO[bytes], position: int) -> tuple[int, bool]:
    """Where the line at a position ends (after its \\n), and whether the stream ends there."""
    stream.seek(position)
    while chunk := stream.read(_CHUNK_BYTES):
        found = chunk.find(b"\n")
        if found >= 0:
            return position + found + 1, False
        position += len(chunk)
    return position, True
