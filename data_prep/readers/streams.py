"""A source as a stream of unpacked bytes."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from data_prep import files
from data_prep.input_config import Input
from data_prep.readers.records import is_utf8
from data_prep.sources import Segment, Source
from data_prep.unpacking import BombError, DamagedError, Unpacked
from runtime.errors import UserError

_BOM = codecs.BOM_UTF8
_WIDE_BOMS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@contextmanager
def opened(source: Source, options: Input) -> Iterator[IO[bytes]]:
    """Open a source for reading, unpacked; failures become UserErrors that name the file."""
    if source.version and source.changed():
        raise UserError(f"{source.name} changed since the run was planned; run again")
    with files.opened(source.path, source.name) as raw:
        if not source.compression:
            yield raw
            return
        try:
            stream = Unpacked(raw, source.compression, options.max_unpack_ratio)
            yield cast(IO[bytes], stream)
        except DamagedError as error:
            raise UserError(
                f"{source.name}: the {source.compression} file is cut off or damaged ({error}); "
                "fetch it again"
            ) from error
        except BombError as error:
            raise UserError(
                f"{source.name}: {error} bytes, beyond max_unpack_ratio "
                f"{options.max_unpack_ratio:g}; remove the file, or raise input.max_unpack_ratio"
            ) from error


def end_of(source: Source, segment: Segment) -> float:
    """Where a segment's bytes end; a packed file is one segment, whatever size it unpacks to."""
    return float("inf") if source.compression else segment.end


def without_mark(data: bytes, offset: int, source: Source, encoding: str) -> bytes:
    """A file's first bytes without the byte order mark of UTF-8.

    Raises UserError where the mark says that the file is of another encoding.
    """
    if offset or data[:1] not in (b"\xef", b"\xff", b"\xfe", b"\0"):
        return data
    for mark, name in _WIDE_BOMS.items():
        if data.startswith(mark):
            raise UserError(
                f"{source.name}: is {name} (by its byte order mark), not {encoding}; convert it: "
                f"iconv -f {name} -t UTF-8 FILE > NEW"
            )
    return data.removeprefix(_BOM) if is_utf8(encoding) else data


def unpacked_size(source: Source, options: Input) -> int:
    """The size of a file once unpacked, in bytes; a packed one is unpacked to see it."""
    if not source.compression:
        return source.size
    total = 0
    with opened(source, options) as stream:
        while chunk := stream.read(1 << 20):
            total += len(chunk)
    return total
