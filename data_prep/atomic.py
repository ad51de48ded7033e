"""Files that are either complete or absent: write aside → fsync → rename → fsync the directory."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from runtime.errors import UserError

_ASIDE = ".tmp-"  # marks a file that is still being written


def aside(path: Path) -> Path:
    """The name under which a file is written until it is complete; private to this process.

    With the machine's name: an array's tasks on two machines may have the same number.
    """
    return path.with_name(f".{path.name}{_ASIDE}{os.uname().nodename}-{os.getpid()}")


def publish(stream: IO[bytes], temporary: Path, path: Path) -> None:
    """Flush a file that was written aside to the disk, close it and give it its name."""
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()
    temporary.replace(path)
    sync_directory(path.parent)


def write_atomic(path: Path, data: bytes, *, is_private: bool = False) -> None:
    """Write a whole file at once; a reader sees the old content, the new one, or no file.

    is_private: only the user who runs this may read it.
    """
    temporary = aside(path)
    try:
        if is_private:
            temporary.touch(mode=0o600)
        publish_bytes(temporary, path, data)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_bytes(temporary: Path, path: Path, data: bytes) -> None:
    """Write `data` aside and publish it under `path`."""
    with temporary.open("wb") as stream:
        stream.write(data)
        publish(stream, temporary, path)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Delete what an interrupted process was still writing. Call it with the directory locked."""
    for path in directory.glob(f".*{_ASIDE}*"):
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory alone until the block or the process ends. Raises UserError if taken."""
    # Opened for appending: truncating here would erase the holder's process id.
    with (directory / ".lock").open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise UserError(
                f"{directory} is being written by another run (process {holder}); "
                "wait for it or choose another output"
            ) from error
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


@contextlib.contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Make a failure to write, such as of a full disk, a UserError that says how to go on."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written: {error.strerror or error}; mend that and "
            "run the same command again: finished work is kept"
        ) from error
