"""What glibc does with freed memory; without effect under other C libraries."""

import contextlib
import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 2**31 - 1  # bytes; an int
# Larger blocks are got from the system and given back one by one; glibc by itself starts at
# 128 KiB, and ends here.
_IN_HEAP = 32 << 20
_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep() -> None:
    """Keep what a step frees for the next, unless the environment says how glibc keeps memory.

    By itself it returns the heap's free end after a few MB, and a step takes it again page by page:
    20 MB in each of a small model's, a seventh of its time.
    """
    if any(name in os.environ for name in _BY_USER):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _IN_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Return free memory to the system now: 140 MB of a small run's after compiling."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
