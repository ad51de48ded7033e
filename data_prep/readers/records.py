"""What readers give: documents, and records that cannot be read."""

from typing import NamedTuple

EXCERPT_CHARACTERS = 160
EXCERPT_BYTES = 4 * EXCERPT_CHARACTERS  # a character of UTF-8 has four at most


class Document(NamedTuple):
    """One document and where it starts."""

    text: str
    source: int
    line: int  # from 1, counted from the segment's start; of files without lines, the record
    offset: int  # bytes from the file's (unpacked) start; of a column, about where it lies there
    url: str = ""  # where it was published; "" where that is not known


class BadRecord(NamedTuple):
    """A record that is left out, and why."""

    source: int
    line: int  # from 1, counted from the segment's start
    reason: str
    excerpt: str


def excerpt(data: bytes, encoding: str = "utf-8") -> str:
    """The beginning of a record that could not be read."""
    return data[:EXCERPT_BYTES].decode(encoding, "replace")[:EXCERPT_CHARACTERS]


def is_utf8(encoding: str) -> bool:
    """Whether a codec's name, as Python knows it, means UTF-8."""
    return encoding in ("utf-8", "utf-8-sig")


def undecodable(encoding: str) -> str:
    """The reason to report for bytes that are none of the encoding's."""
    return "invalid_utf8" if is_utf8(encoding) else "invalid_encoding"
