"""Documents of files that are read outside of a plan: test sets, and sets to compare."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pydantic

from data_prep import files
from data_prep.atomic import file_sha256
from data_prep.files import Location
from data_prep.formats import FORMATS, format_of
from data_prep.input_config import Input, expand
from data_prep.readers import BadRecord, Document, SegmentReader
from data_prep.sources import Segment, Source, name_of
from runtime.errors import EXIT_BAD_INPUT, UserError

Unit = Literal["file", "paragraph", "line"]


@dataclass(frozen=True)
class TextFile:
    """One file, and how it is read."""

    source: Source
    options: Input

    def __iter__(self) -> Iterator[Document | BadRecord]:
        # The end lies behind that of any file: the whole of it is read.
        return iter(SegmentReader(self.source, Segment(0, 0, sys.maxsize), self.options))


def text_files(path: str, text_key: str, document: Unit = "line") -> list[TextFile]:
    """The files that a path, folder, glob or URL stands for, in every format that can be prepared.

    `document` is what one document is in plain text. Raises UserError where there is no file.
    """
    try:
        options = Input(paths=(path,), text_key=text_key, document=document)
    except pydantic.ValidationError as error:
        raise UserError(f"{path!r} is no path", status=EXIT_BAD_INPUT) from error
    found = expand(path, options.format)
    if not found:
        raise UserError(f"{path}: there is no such file", status=EXIT_BAD_INPUT)
    return [TextFile(_source(location), options) for location in found]


def _source(location: Location) -> Source:
    name = name_of(location)
    kind = format_of(location, "auto")
    if kind is None:
        raise UserError(
            f"{name}: its name does not tell its format; formats are {', '.join(FORMATS)}",
            status=EXIT_BAD_INPUT,
        )
    stat = files.stat(location, name)
    digest = ""
    if not isinstance(location, str):
        try:
            digest = file_sha256(location)
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from error
    return Source(name, location, kind, stat.size, stat.mtime_ns, digest, stat.version)
