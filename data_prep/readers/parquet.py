"""Parquet: a document is one column of a row; segments are runs of row groups.

Offsets are bytes of the text's column, unpacked, which the file's footer tells of every row group.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from data_prep import files
from data_prep.input_config import Input
from data_prep.readers.columns import Columns, find_columns, need_pyarrow, records
from data_prep.readers.records import BadRecord, Document
from data_prep.sources import Segment, Source
from runtime.errors import UserError

_BATCH_BYTES = 4 << 20  # of text read at a time, where rows are of like length
_BATCH_ROWS = 256


class ParquetReader:
    """Reads a segment of a Parquet file."""

    def __init__(self, source: Source, segment: Segment, options: Input) -> None:
        self._source, self._segment, self._options = source, segment, options
        self.lines = 0

    def __iter__(self) -> Iterator[Document | BadRecord]:
        segment = self._segment
        with _opened(self._source) as file:
            columns = find_columns(file.schema_arrow, self._source, self._options)
            bounds = _bounds(file, columns)
            for group, (start, end) in enumerate(pairwise(bounds)):
                if segment.start <= start < segment.end:
                    yield from self._group(file, group, columns, (start, end))

    def _group(
        self, file: Any, group: int, columns: Columns, span: tuple[int, int]
    ) -> Iterator[Document | BadRecord]:
        start, end = span
        count = file.metadata.row_group(group).num_rows
        wanted = [".".join(path) for path in (columns.text, columns.url) if path]
        per_row = max((end - start) // max(count, 1), 1)
        batches = file.iter_batches(
            batch_size=max(1, min(_BATCH_ROWS, _BATCH_BYTES // per_row)),
            row_groups=[group],
            columns=wanted,
            use_threads=False,  # the worker processes are the parallelism
        )
        before = 0
        for batch in batches:
            after = before + batch.num_rows
            share = [start + (end - start) * row // count for row in (before, after)]
            first = (self._segment.source, self.lines, share[0], share[1])
            yield from records(batch, columns, self._options, first)
            self.lines += batch.num_rows
            before = after


def parquet_bounds(source: Source, options: Input) -> list[int]:
    """Where the row groups begin, and where the last one ends.

    Raises UserError where the file is none, or lacks the text's column.
    """
    with _opened(source) as file:
        return _bounds(file, find_columns(file.schema_arrow, source, options))


def _bounds(file: Any, columns: Columns) -> list[int]:
    metadata = file.metadata
    name = ".".join(columns.text)
    column = next(
        (n for n in range(metadata.num_columns) if metadata.schema.column(n).path == name), 0
    )
    sizes = (
        metadata.row_group(group).column(column).total_uncompressed_size
        for group in range(metadata.num_row_groups)
    )
    return list(accumulate((max(int(size), 1) for size in sizes), initial=0))


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    """Open a Parquet file; what is wrong with it becomes a UserError that names it."""
    need_pyarrow(source)
    import pyarrow
    from pyarrow import parquet

    if source.compression:
        raise UserError(
            f"{source.name}: a Parquet file cannot be read while it is packed; unpack it first"
        )
    with files.opened(source.path, source.name) as stream:
        place = str(source.path) if isinstance(source.path, Path) else stream
        try:
            with parquet.ParquetFile(
                place, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
            ) as file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"{source.name}: is no Parquet file, or a damaged one ({reason}); fetch it again"
            ) from error
