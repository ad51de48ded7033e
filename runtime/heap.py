"""What glibc does with freed memory; without effect under other C libraries."""

import contextlib
import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 2**31 - 1  # bytes; an int
# Bytes; larger blocks are got from the system and given back one by one. By itself glibc starts at
# 128 KiB, and ends here.
IN_HEAP = 32 << 20


def keep() -> None:
    """Keep what a step frees for the next, unless the environment says how glibc keeps memory.

    By itself glibc returns the free end of its heap. A small model's step took 20 MB anew each
    time, page by page, in about a tenth of its time.
    """
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    by_user = any(os.environ.get(name) for name in names)
    if by_user or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, IN_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Return free memory to the system now: 140 MB of a small run's after compiling."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
