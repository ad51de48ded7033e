"""WARC, as crawls are published: a document is a web page (raw HTML), or its text in WET files.

`response` records give their payload, `conversion` and `resource` records their text. Records of
other types, and payloads that their Content-Type says are no text, hold no document.
"""

import codecs
import io
import re
from collections.abc import Iterator
from typing import IO, Any, cast

from data_prep.input_config import Input
from data_prep.readers.http_payload import UNDECODABLE, decoded_body
from data_prep.readers.jsonl import checked
from data_prep.readers.records import BadRecord, Document, excerpt
from data_prep.readers.streams import opened
from data_prep.sources import Segment, Source
from runtime.errors import EXIT_BAD_INPUT, UserError

_BUFFER_BYTES = 1 << 18
_CHUNK_BYTES = 1 << 20
_HEADER_BYTES = 1 << 20  # of one record, and of one HTTP response
_WITH_TEXT = ("response", "conversion", "resource")
_TEXT_TYPES = re.compile(
    r"^(text/(html|plain|xml)|application/(xhtml\+xml|xml|json))?\s*(;|$)", re.IGNORECASE
)
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_META_BYTES = 1024  # browsers look no further for a page's own word on its encoding
_MOST_INVALID = 0.01  # of a page's characters
# Labels that browsers read as a larger encoding (https://encoding.spec.whatwg.org, 4.2).
_AS_BROWSERS_DO = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "iso8859-9": "cp1254",
    "tis-620": "cp874",
}


class WarcReader:
    """Reads a WARC file. `line` of what it gives is the record's number in the file."""

    def __init__(self, source: Source, segment: Segment, options: Input) -> None:
        self._source, self._segment, self._options = source, segment, options
        self.lines = 0

    def __iter__(self) -> Iterator[Document | BadRecord]:
        number, limit = self._segment.source, self._options.max_record_bytes
        with opened(self._source, self._options) as raw:
            stream = _Records(raw)
            for record, offset in self._parsed(stream):
                if not _has_text(record):
                    continue
                url = record.rec_headers.get_header("WARC-Target-URI") or ""
                data, reason = _payload(record, limit)
                text: str | None = None
                if not reason:
                    text, reason = _decoded(data, _declared_charset(record))
                if text is not None:
                    text, reason, url = checked(text, url)
                if text is None:
                    yield BadRecord(number, self.lines, reason, excerpt(data))
                else:
                    yield Document(text, number, self.lines, offset, url)

    def _parsed(self, stream: "_Records") -> Iterator[tuple[Any, int]]:
        """Yield the records and where they begin. Raises UserError at the first that is none."""
        loader, errors = _loader(self._source)
        while True:
            try:
                first = stream.first_line()
                if not first:
                    return
                offset = stream.tell() - len(first)
                self.lines += 1
                record = loader.parse_record_stream(stream, first, "warc")
                yield record, offset
                _skip_rest(record)
            except errors as error:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise UserError(
                    f"{self._source.name}: record {self.lines} is cut off or no WARC record "
                    f"({reason[0][:200]}); fetch the file again"
                ) from error


class _BadHeaderError(Exception):
    """A header that has no end, or a record that has."""


class _Records:
    """What warcio reads from: the stream, with a bound on the lines of headers."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._inner = io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER_BYTES)
        self._header_bytes = 0

    def first_line(self) -> bytes:
        """The first line of the next record; nothing at the end of the file."""
        self._header_bytes = 0
        while (line := self.readline()) and not line.strip():
            self._header_bytes = 0  # blank lines separate records
        return line

    def readline(self, size: int | None = None) -> bytes:
        wanted = _HEADER_BYTES if size is None or size < 0 else min(size, _HEADER_BYTES)
        line = self._inner.readline(wanted)
        self._header_bytes += len(line)
        if self._header_bytes > 2 * _HEADER_BYTES:
            raise _BadHeaderError(f"its headers are longer than {_HEADER_BYTES:,} bytes")
        return line

    def read(self, size: int | None = None) -> bytes:
        return self._inner.read(-1 if size is None else size)

    def tell(self) -> int:
        return self._inner.tell()


def _loader(source: Source) -> tuple[Any, tuple[type[Exception], ...]]:
    """A parser of records, and the errors that it raises."""
    try:
        from warcio.exceptions import ArchiveLoadFailed
        from warcio.recordloader import ArcWarcRecordLoader
        from warcio.statusandheaders import StatusAndHeadersParserException
    except ImportError as error:
        raise UserError(
            f"{source.name}: WARC files need warcio; pip install 'ingot[data]'",
            status=EXIT_BAD_INPUT,
        ) from error
    # Real servers answer with status lines of every kind: they are not checked.
    loader = ArcWarcRecordLoader(verify_http=False, arc2warc=False)
    known = (ArchiveLoadFailed, StatusAndHeadersParserException, EOFError, _BadHeaderError)
    return loader, known


def _has_text(record: Any) -> bool:
    if record.rec_type not in _WITH_TEXT:
        return False
    return bool(_TEXT_TYPES.match(_content_type(record).strip()))


def _content_type(record: Any) -> str:
    """What the server, or the record itself, says that its payload is; "" where nothing does."""
    if record.http_headers:
        return str(record.http_headers.get_header("Content-Type") or "")
    return "" if record.rec_type == "response" else str(record.content_type or "")


def _payload(record: Any, limit: int) -> tuple[bytes, str]:
    """A record's content without transfer encoding, or its beginning and why it is of no use."""
    parts: list[bytes] = []
    size = 0
    while size <= limit and (part := record.raw_stream.read(min(_CHUNK_BYTES, limit + 1))):
        parts.append(part)
        size += len(part)
    data = b"".join(parts)
    if record.rec_headers.get_header("WARC-Truncated"):
        return data, "truncated"
    if size > limit:
        return data, "too_long"
    if not record.http_headers:
        return data, ""
    body = decoded_body(data, record.http_headers, limit)
    if body is None:
        return data, UNDECODABLE
    return body, "too_long" if len(body) > limit else ""


def _skip_rest(record: Any) -> None:
    """Go to the record's end. Raises EOFError where the file ends before."""
    stream = record.raw_stream
    if record.length is None:
        raise _BadHeaderError("it does not tell its length")
    while stream.limit:
        if not stream.read(_CHUNK_BYTES):
            raise EOFError(f"{stream.limit:,} bytes are missing")


def _declared_charset(record: Any) -> str:
    found = _CHARSET.search(_content_type(record))
    return found[1] if found else ""


def _decoded(data: bytes, declared: str) -> tuple[str | None, str]:
    """Text of a page as browsers decode it, or None and the reason.

    A byte order mark decides, then the server's word, then the page's own, else it is UTF-8 if it
    can be and Windows-1252 if not. Single bytes that are invalid become U+FFFD: pages are cut off
    inside characters. A page with many of them is refused.
    """
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if data.startswith(mark):
            data, declared = data.removeprefix(mark), name
            break
    codec = _codec(declared)
    if not codec:
        found = _CHARSET.search(data[:_META_BYTES].decode("latin-1"))
        codec = _codec(found[1] if found else "")
    try:
        text = data.decode(codec or "utf-8")
    except UnicodeDecodeError:
        text = data.decode(codec or "cp1252", "replace")
        if text.count("\ufffd") > _MOST_INVALID * len(text) + 1:
            return None, "invalid_encoding"
    if "\0" in text:  # no text has them: it is some other kind of file
        return None, "nul_byte"
    return text, ""


def _codec(label: str) -> str:
    """Python's codec for a label of an encoding, or "" where there is none."""
    try:
        name = codecs.lookup(label.strip()).name if label else ""
        "".encode(name or "ascii")  # labels such as `hex` are codecs, but of no text
    except (LookupError, UnicodeError, TypeError, ValueError):
        return ""
    return _AS_BROWSERS_DO.get(name, name)
