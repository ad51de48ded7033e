"""Input files wherever they lie: on a disk, or behind a URL that fsspec knows.

A file on a disk is a plain Path. Credentials come from the environment, as the storage's own tools
find them; what a URL holds of them is never part of a name or a message.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.redaction import HIDDEN, redacted

Location = Path | str  # a local file, or the URL of a remote one

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_BLOCK_BYTES = 4 << 20  # what one request to a storage asks for
# What storages call the property that tells versions of a file apart, the surest first.
_VERSION_KEYS = ("etag", "versionid", "version_id", "generation", "md5hash", "content-md5", "ino")
_TIME_KEYS = ("last-modified", "lastmodified", "last_modified", "modified", "mtime", "created")


class Stat(NamedTuple):
    """What tells whether a file is still the same without reading it."""

    size: int
    mtime_ns: int  # 0 where the file is remote
    version: str  # "" where the file is local


def is_remote(text: str) -> bool:
    """Whether an entry of `input.paths` is a URL."""
    return bool(_SCHEME.match(text)) and not text.lower().startswith("file://")


def local_path(text: str) -> Path:
    """A path, also where it is written as file://."""
    if text.lower().startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return Path(text)


def shown(location: Location) -> str:
    """A location as it may be printed and stored: without credentials or signatures."""
    text = str(location)
    if isinstance(location, Path) or not is_remote(text):
        return text
    address, mark, _ = re.sub("#.*", "", text).partition("?")
    return str(redacted(address)) + (f"?{HIDDEN}" if mark else "")


def file_name(location: Location) -> str:
    """The last part of a location, which tells the format."""
    if isinstance(location, Path):
        return location.name
    return re.sub(r"[?#].*", "", location).rstrip("/").rpartition("/")[2]


def stat(location: Location, name: str) -> Stat:
    """Size and version of a file. Raises UserError naming it where there is none."""
    if isinstance(location, Path):
        try:
            found = location.stat()
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from error
        return Stat(found.st_size, found.st_mtime_ns, "")
    with _told(location, name):
        system, path = _system(location)
        system.invalidate_cache()
        info = {str(k).lower(): v for k, v in system.info(path).items()}
    size = info.get("size")
    if not isinstance(size, int):
        raise UserError(f"{name}: the server does not tell its size; download it first")
    return Stat(size, 0, _version(info, name))


@contextmanager
def opened(location: Location, name: str) -> Iterator[IO[bytes]]:
    """Open a file for reading, unbuffered where it is local. Failures become UserErrors."""
    if isinstance(location, Path):
        try:
            with location.open("rb", buffering=0) as raw:
                yield cast(IO[bytes], raw)
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror or error}") from error
        return
    with _RemoteFile(location, name) as stream:
        yield cast(IO[bytes], stream)


class _RemoteFile(io.RawIOBase):
    """A remote file, of which ranges are read; its failures are UserErrors."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        with _told(url, name):
            system, path = _system(url)
            self._inner = system.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="readahead")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._inner.seekable())

    def read(self, size: int = -1, /) -> bytes:
        with _told(self._url, self._name):
            return bytes(self._inner.read(size))

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        with _told(self._url, self._name):
            return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self._inner.tell())

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


def listed(text: str) -> list[str]:
    """The URLs that a URL, a glob on URLs or a remote folder stands for, sorted.

    Hidden files are left out. Raises UserError where the storage cannot be asked.
    """
    with _told(text, shown(text)):
        system, path = _system(text)
        if _has_magic(text):
            found = [str(match) for match in system.glob(path)]
            files = [inner for match in found for inner in _below(system, match)]
        else:
            files = _below(system, path)
            if files == [path]:
                return [text]  # as it was written: its query may be what grants access
        names = (str(system.unstrip_protocol(file)) for file in files)
        return sorted({name for name in names if not _is_hidden(name, text)})


def _below(system: Any, path: str) -> list[str]:
    if not system.exists(path):
        return []
    if system.isfile(path):
        return [path]
    return [str(inner) for inner in system.find(path)]


def _is_hidden(name: str, text: str) -> bool:
    base = re.split(r"[*?\[]", text)[0]
    return any(part.startswith(".") for part in name.removeprefix(base).split("/"))


def _has_magic(url: str) -> bool:
    address = url.partition("?")[0] if url.lower().startswith("http") else url
    return bool(re.search(r"[*\[]|\?", address))


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path there; made anew in each process."""
    try:
        import fsspec
    except ImportError as error:
        raise UserError(
            f"{shown(url)}: URLs need fsspec; pip install 'ingot[data]'", status=EXIT_BAD_INPUT
        ) from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = "ingot[s3]" if url.startswith("s3") else "the package it names"
        raise UserError(
            f"{shown(url)}: {_plain(error, url)}; install {package}", status=EXIT_BAD_INPUT
        ) from error
    except ValueError as error:
        raise UserError(
            f"{shown(url)}: {_plain(error, url)}; write a path or a URL such as s3://bucket/folder",
            status=EXIT_BAD_INPUT,
        ) from error
    return system, path


def _version(info: dict[str, Any], name: str) -> str:
    for key in (*_VERSION_KEYS, *_TIME_KEYS):
        value = info.get(key)
        if value is not None:
            return f"{key} {value}".replace('"', "")
    raise UserError(
        f"{name}: the server tells neither an ETag nor when the file changed; download it first"
    )


@contextmanager
def _told(url: str, name: str) -> Iterator[None]:
    """Failures of a storage, of which every library has its own, as UserErrors."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"{name}: does not exist") from error
    except Exception as error:  # of botocore, aiohttp, gcsfs, … whose classes have no common base
        reason = f"{type(error).__name__}: {_plain(error, url)}"
        raise UserError(f"{name}: cannot be read: {reason}") from error


def _plain(error: Exception, url: str) -> str:
    """The first line of a library's message, without what the URL holds of secrets."""
    lines = str(error).splitlines() or [""]
    text = lines[0].replace(url, shown(url))
    text = re.sub(r"(?<=[?&])[^\s'\"]+", HIDDEN, text)
    return str(redacted(text))[:300]
