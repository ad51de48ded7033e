"""A file whose sha256 is computed while it is written. Torch-free."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

PIECE_BYTES = 16 * 2**20
_WORTH_A_THREAD = 2**18  # below it handing over costs more than hashing


class HashedFile:
    """Writes and hashes each piece at the same time; both release Python's lock.

    progress: called with the number of bytes after each piece.
    """

    def __init__(self, path: Path, progress: Callable[[int], None]) -> None:
        self.size = 0
        self._progress = progress
        self._digest = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, data: Any) -> int:
        """Write all of a buffer, which may be used again when this returns. Raises OSError."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            hashing: Future[None] | None = None
            if len(piece) >= _WORTH_A_THREAD:
                hashing = self._hasher.submit(self._digest.update, piece)
            else:
                self._digest.update(piece)
            try:
                self._write(piece)
            finally:
                if hashing is not None:
                    hashing.result()
            self._progress(len(piece))
        return len(view)

    def _write(self, piece: memoryview) -> None:
        begin = self.size
        while piece:
            written = os.write(self._handle, piece)
            self.size += written
            piece = piece[written:]
        if self.size - begin >= _WORTH_A_THREAD and hasattr(os, "posix_fadvise"):
            # Linux then starts to write to the disk now, instead of at the fsync at the end.
            with suppress(OSError):
                os.posix_fadvise(self._handle, begin, self.size - begin, os.POSIX_FADV_DONTNEED)

    def sha256(self) -> str:
        """The hash of what was written, in hex."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Force it to the disk. Raises OSError, also for an earlier write that failed."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Let go of the file, whole or not."""
        self._hasher.shutdown()
        os.close(self._handle)
