"""CSV and TSV with a header: a document is one column of a record.

Quoting is that of Python's csv module (RFC 4180), strictly: a quote inside a quoted field is
doubled, and a quoted field may hold line breaks. A quote that is never closed spoils its own line
alone (`invalid_csv`): reading goes on with the next one.
"""

import csv
from collections.abc import Iterator
from typing import IO

from data_prep.input_config import Input
from data_prep.readers.jsonl import checked
from data_prep.readers.quoting import Row, split_records
from data_prep.readers.records import BadRecord, Document, excerpt, undecodable
from data_prep.readers.streams import end_of, opened, without_mark
from data_prep.sources import Segment, Source
from runtime.errors import EXIT_BAD_INPUT, UserError

DELIMITERS = {"csv": ",", "tsv": "\t"}


class _Slot:
    """Feeds a csv.reader one record at a time: making a reader for each costs more."""

    def __init__(self) -> None:
        self.text = ""

    def __iter__(self) -> "_Slot":
        return self

    def __next__(self) -> str:
        if not self.text:
            raise StopIteration
        text, self.text = self.text, ""
        return text


class DelimitedReader:
    """Reads a segment of a CSV or TSV file."""

    def __init__(self, source: Source, segment: Segment, options: Input) -> None:
        self._source, self._segment, self._options = source, segment, options
        self._slot = _Slot()
        # Records are bounded before they are parsed; the module's own limit is a tenth of that.
        csv.field_size_limit(max(csv.field_size_limit(), options.max_record_bytes))
        self._parser = csv.reader(self._slot, delimiter=DELIMITERS[source.format], strict=True)
        self.lines = 0

    def __iter__(self) -> Iterator[Document | BadRecord]:
        source, segment, options = self._source, self._segment, self._options
        number = segment.source
        names = self.columns()
        column = names.index(options.text_key)
        url_column = names.index(options.url_key) if options.url_key in names else -1
        with opened(source, options) as stream:
            for record in self._records(stream, segment.start, end_of(source, segment)):
                if not record.offset or not record.data.strip(b"\r"):
                    continue  # the header; a blank line
                row, reason = self._parse(record)
                text, url = None, ""
                if row and len(row) != len(names):
                    reason = "wrong_field_count"  # a field cut in two by its own comma is no text
                elif row:
                    url = row[url_column] if url_column >= 0 else ""
                    text, reason, url = checked(row[column], url)
                if text is None:
                    shown = excerpt(record.data, options.encoding)
                    yield BadRecord(number, record.line, reason, shown)
                else:
                    yield Document(text, number, record.line, record.offset, url)

    def columns(self) -> list[str]:
        """The names in the header. Raises UserError where the text's column is not among them."""
        with opened(self._source, self._options) as stream:
            header = next(self._records(stream, 0, 1), None)
        if header is None:
            return [self._options.text_key]  # an empty file has no documents either
        names, reason = self._parse(header)
        if reason:
            raise UserError(f"{self._source.name}: its first line is no header ({reason})")
        if names.count(self._options.text_key) != 1:
            times = "twice" if self._options.text_key in names else "nowhere"
            raise UserError(
                f"{self._source.name}: column {self._options.text_key!r} is {times} in the header; "
                f"set input.text_key to one of {', '.join(map(repr, names))}",
                status=EXIT_BAD_INPUT,
            )
        self.lines = 0
        return names

    def _parse(self, record: Row) -> tuple[list[str], str]:
        """The fields of a record, or none and the reason."""
        encoding = self._options.encoding
        data = without_mark(record.data, record.offset, self._source, encoding)
        if record.too_long:
            return [], "too_long"
        if b"\0" in data:
            return [], "nul_byte"
        try:
            self._slot.text = data.decode(encoding)
        except UnicodeDecodeError:
            return [], undecodable(encoding)
        try:
            return next(self._parser), ""
        except (csv.Error, StopIteration):
            self._slot.text = ""
            return [], "invalid_csv"

    def _records(self, stream: IO[bytes], start: int, end: float) -> Iterator[Row]:
        for record in split_records(
            stream, (start, end), DELIMITERS[self._source.format], self._options.max_record_bytes
        ):
            self.lines = record.last_line
            yield record
