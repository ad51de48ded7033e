"""The body of an HTTP response as it was before it was chunked and packed.

Chunks are those of RFC 9112, section 7; encodings those of RFC 9110, section 8.4. Writers of
archives that store bodies already decoded often leave the headers as they were: a body that is
plainly none of what its headers say is taken as it is.
"""

import re
import zlib
from collections.abc import Callable
from typing import Any

UNDECODABLE = "undecodable_payload"
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]{1,16})[ \t]*(;[^\r\n]*)?\r\n")
_GZIP = b"\x1f\x8b"
_GZIP_BITS = 16 + zlib.MAX_WBITS
_OTHER_PACKINGS = ("zstd", "compress", "x-compress", "bzip2", "x-bzip2", "xz", "lzma")
_PART_BYTES = 1 << 14


def decoded_body(data: bytes, headers: Any, limit: int) -> bytes | None:
    """A body without its encodings, or None where it is cut off or damaged, or cannot be unpacked.

    headers: those that warcio parsed. limit: of a body that unpacks to more bytes, only somewhat
    more than these are given.
    """
    found: bytes | None = data
    if (headers.get_header("Transfer-Encoding") or "").strip().lower() == "chunked":
        found = _joined(data)
    encodings = (headers.get_header("Content-Encoding") or "").lower().split(",")
    for encoding in reversed([name.strip() for name in encodings]):
        if found is None:
            return None
        found = _unpacked(found, encoding, limit)
    return found


def _joined(data: bytes) -> bytes | None:
    """The chunks of a body in one."""
    parts: list[bytes] = []
    at = 0
    while size := _CHUNK_SIZE.match(data, at):
        count = int(size[1], 16)
        if not count:
            return b"".join(parts)  # headers may follow
        at = size.end() + count
        if data[at : at + 2] != b"\r\n":
            return None
        parts.append(data[size.end() : at])
        at += 2
    return None if at else data


def _unpacked(data: bytes, encoding: str, limit: int) -> bytes | None:
    if encoding in ("gzip", "x-gzip"):
        return _inflated(data, _GZIP_BITS, limit) if data.startswith(_GZIP) else data
    if encoding == "deflate":
        # The zlib format is meant; some servers send its inside alone.
        found = _inflated(data, zlib.MAX_WBITS, limit)
        found = _inflated(data, -zlib.MAX_WBITS, limit) if found is None else found
    elif encoding == "br":
        found = _unbrotlied(data, limit)
    elif encoding in _OTHER_PACKINGS:
        found = None
    else:
        return data  # none, or no packing: servers also write such as `utf-8` here
    if found is None and _is_utf8(data):
        return data
    return found


def _inflated(data: bytes, bits: int, limit: int) -> bytes | None:
    found = b""
    while len(found) <= limit:
        unpacker = zlib.decompressobj(bits)
        try:
            found += unpacker.decompress(data, limit + 1 - len(found))
        except zlib.error:
            return None
        if len(found) > limit:
            break
        if not unpacker.eof:
            return None
        data = unpacker.unused_data
        if bits != _GZIP_BITS or not data.startswith(_GZIP):  # gzip may have several members
            break
    return found


def _unbrotlied(data: bytes, limit: int) -> bytes | None:
    from warcio.bufferedreaders import BufferedReader

    maker: Callable[[], Any] | None = BufferedReader.DECOMPRESSORS.get("br")
    if maker is None:  # the package brotli is not installed
        return None
    unpacker, parts, size = maker(), [], 0
    for start in range(0, len(data), _PART_BYTES):
        try:
            part = unpacker.decompress(data[start : start + _PART_BYTES])
        except Exception:  # its class belongs to whichever package warcio found
            return None
        parts.append(part)
        size += len(part)
        if size > limit:
            return b"".join(parts)
    return b"".join(parts) if unpacker.is_finished() else None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
