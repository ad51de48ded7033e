"""Packed files as streams: gzip, zstd, bzip2 and xz, of one frame or of many, in bounded memory.

A file that is cut off, damaged or unpacks to out of all proportion never ends as if it were whole.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Protocol, cast

SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
# Text usually unpacks to about this many times its size (measured on prose in JSON lines).
USUAL_RATIO = {"": 1, "gzip": 4, "zstd": 4, "bzip2": 5, "xz": 5}
RATIO_FLOOR_BYTES = 64 << 20  # a ratio is judged from here on: few bytes harm nobody

_OUT_BYTES = 1 << 18  # unpacked at a time
_IN_BYTES = {"gzip": 1 << 16, "bzip2": 1 << 16, "xz": 1 << 16}
# zstandard has no limit on what one step gives, and a kilobyte may unpack to 32 MiB.
_ZSTD_IN_BYTES = 1 << 10
_XZ_MEMORY_BYTES = 1 << 30  # `xz -9` needs 65 MiB
_ZSTD_WINDOW_BYTES = 1 << 31  # `zstd --long=31`, as published dumps use it


class DamagedError(Exception):
    """Packed bytes that are cut off or no packed bytes at all."""


class BombError(Exception):
    """Packed bytes that unpack to many times more than text does."""


def compression_of(name: str) -> str:
    """How a file of this name is packed: a value of SUFFIXES, or "" where it is not."""
    lower = name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if lower.endswith(suffix)), "")


def without_suffix(name: str) -> str:
    """A lower-case file name without the ending that says how the file is packed."""
    lower = name.lower()
    return next((lower.removesuffix(end) for end in SUFFIXES if lower.endswith(end)), lower)


class _Decompressor(Protocol):
    """What bz2 and lzma offer: one frame, of which `decompress` gives at most `max_length`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)  # 31: gzip's header and checksum

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Zstd:
    needs_input = True

    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._inner = context.decompressobj()

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, _: int, /) -> bytes:
        try:
            return self._inner.decompress(data)
        except self._error as error:
            raise DamagedError(str(error)) from error


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)


_MAKERS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": _Gzip,
    "zstd": _Zstd,
    "bzip2": bz2.BZ2Decompressor,
    "xz": _xz,
}


class Unpacked(io.RawIOBase):
    """The unpacked bytes of a stream of concatenated frames, read from the start.

    Raises DamagedError, and BombError beyond `max_ratio` times the packed bytes read so far.
    """

    def __init__(self, packed: IO[bytes], kind: str, max_ratio: float) -> None:
        self._packed, self._kind, self._max_ratio = packed, kind, max_ratio
        self._frame: _Decompressor | None = None
        self._rest = b""  # packed, beyond the end of the last frame
        self._ready = memoryview(b"")
        self._bytes_in = self._bytes_out = 0
        self._frames = 0
        self._given = 0

    def readable(self) -> bool:
        """Always: the stream is for reading."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end; all that is left where size is negative."""
        if size < 0:
            return b"".join(iter(lambda: self.read(_OUT_BYTES), b""))
        if not self._ready:
            self._ready = memoryview(self._step())
        taken = bytes(self._ready[:size])
        self._ready = self._ready[size:]
        self._given += len(taken)
        return taken

    def readinto(self, buffer: object, /) -> int:
        """Fill a buffer, or a part of it."""
        view = memoryview(cast(bytearray, buffer)).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def tell(self) -> int:
        """How many bytes have been read."""
        return self._given

    def close(self) -> None:
        """Close the packed stream too."""
        self._packed.close()
        super().close()

    def _step(self) -> bytes:
        """Some unpacked bytes; none at the end of the last frame."""
        while True:
            if self._frame is None and not self._next_frame():
                return b""
            frame = cast(_Decompressor, self._frame)
            data = b""
            if frame.needs_input:
                data, self._rest = self._rest or self._more(), b""
            try:
                out = frame.decompress(data, _OUT_BYTES)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise DamagedError(str(error)) from error
            if frame.eof:
                self._rest, self._frame = frame.unused_data, None
                self._frames += 1
            elif not out and not data and frame.needs_input:
                raise DamagedError("it ends in the middle")
            if out:
                return self._judged(out)

    def _next_frame(self) -> bool:
        if self._kind in ("gzip", "xz"):
            while True:  # both may be padded with zeros
                self._rest = self._rest.lstrip(b"\0") if self._frames else self._rest
                if self._rest:
                    break
                self._rest = self._more()
                if not self._rest:
                    return False
        else:
            self._rest = self._rest or self._more()
        if self._rest:
            self._frame = _MAKERS[self._kind]()
        return bool(self._rest)

    def _more(self) -> bytes:
        data = self._packed.read(_IN_BYTES.get(self._kind, _ZSTD_IN_BYTES))
        self._bytes_in += len(data)
        return data

    def _judged(self, out: bytes) -> bytes:
        self._bytes_out += len(out)
        limit = max(RATIO_FLOOR_BYTES, self._max_ratio * self._bytes_in)
        if self._bytes_out > limit:
            raise BombError(
                f"{self._bytes_in:,} bytes of it unpack to more than {self._bytes_out:,}"
            )
        return out
