"""Arrow IPC, as streams and as files (Feather 2): a document is one column of a row.

Segments are runs of record batches. A file is read as the stream that it holds: the format's
specification puts a stream between the magic bytes at its start and the footer at its end.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from data_prep.input_config import Input
from data_prep.readers.columns import find_columns, need_pyarrow, records
from data_prep.readers.records import BadRecord, Document
from data_prep.readers.streams import opened
from data_prep.sources import Segment, Source
from runtime.errors import UserError

_MAGIC = b"ARROW1\0\0"
_FEATHER_1 = b"FEA1"
_BUFFER_BYTES = 1 << 20


class ArrowReader:
    """Reads a segment of an Arrow file."""

    def __init__(self, source: Source, segment: Segment, options: Input) -> None:
        self._source, self._segment, self._options = source, segment, options
        self.lines = 0

    def __iter__(self) -> Iterator[Document | BadRecord]:
        segment, options = self._segment, self._options
        is_whole = segment.start == 0 and (
            bool(self._source.compression) or segment.end >= self._source.size
        )
        with _opened(self._source, options) as (stream, reader):
            columns = find_columns(reader.schema, self._source, options)
            if is_whole:
                batches = _all(stream, reader)
            else:
                batches = _some(stream, reader, segment.start, segment.end)
            for batch, start, end in batches:
                first = (segment.source, self.lines, start, end)
                yield from records(batch, columns, options, first)
                self.lines += batch.num_rows


def arrow_bounds(source: Source, options: Input, step: int) -> list[int]:
    """Places between record batches, about `step` bytes apart, from 0 to the file's end.

    Raises UserError where the file is none, or lacks the text's column.
    """
    with _opened(source, options) as (stream, reader):
        find_columns(reader.schema, source, options)
        is_local = isinstance(source.path, Path) and not source.compression
        if not is_local or any(map(_has_dictionary, reader.schema.types)):
            # A remote file would be read whole to cut it; and dictionaries, of which a file holds
            # one for all its batches, come before them.
            return [0, source.size]
        bounds, target = [0], step
        for _, start, _ in _some(stream, reader, 0, source.size):
            if start >= target:
                bounds.append(start)
                target = (start // step + 1) * step
    return [*bounds, source.size]


def _all(stream: Any, reader: Any) -> Iterator[tuple[Any, int, int]]:
    """Yield every batch with the bytes [start, end) that it lies in."""
    while True:
        start = stream.tell()
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        yield batch, start, stream.tell()


def _some(stream: Any, reader: Any, start: int, end: int) -> Iterator[tuple[Any, int, int]]:
    """Yield the batches that begin in bytes [start, end)."""
    from pyarrow import ipc

    if start:
        stream.seek(start)
    while (at := stream.tell()) < end:
        try:
            message = ipc.read_message(stream)
        except EOFError:  # the mark of the stream's end; a file's footer follows
            return
        yield ipc.read_record_batch(message, reader.schema), at, stream.tell()


def _has_dictionary(kind: Any) -> bool:
    from pyarrow import types

    inner = (kind.field(number).type for number in range(kind.num_fields))
    return bool(types.is_dictionary(kind)) or any(map(_has_dictionary, inner))


@contextmanager
def _opened(source: Source, options: Input) -> Iterator[tuple[Any, Any]]:
    """Open an Arrow file: its bytes, and a reader of its stream that knows the schema.

    What is wrong with the file becomes a UserError that names it.
    """
    need_pyarrow(source)
    import pyarrow
    from pyarrow import ipc

    with opened(source, options) as raw:
        try:
            with _native(raw, source) as stream:
                yield stream, ipc.open_stream(stream)
        except (pyarrow.ArrowException, OSError, EOFError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"{source.name}: is no Arrow IPC file, or a damaged one ({reason}); fetch it again"
            ) from error


def _native(raw: IO[bytes], source: Source) -> Any:
    """A stream for pyarrow that stands where Arrow's own stream begins."""
    import pyarrow

    if isinstance(source.path, Path) and not source.compression:
        stream = pyarrow.memory_map(str(source.path))
        magic = stream.read(len(_MAGIC))
        stream.seek(len(_MAGIC) if magic == _MAGIC else 0)
    else:
        # pyarrow takes less than it asked for as the file's end.
        full = io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER_BYTES)
        magic = full.peek(len(_MAGIC))[: len(_MAGIC)]
        if magic == _MAGIC:
            full.read(len(_MAGIC))
        stream = pyarrow.PythonFile(full, mode="r")
    if magic.startswith(_FEATHER_1):
        raise UserError(f"{source.name}: is Feather version 1; write it anew as version 2")
    return stream
