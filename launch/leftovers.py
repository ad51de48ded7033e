"""What a run may leave behind: processes without a parent, names in /dev/shm. Linux only."""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from runtime import hang

_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not a temporary file of ours
# What torch, Python's multiprocessing and NCCL name their segments.
_OURS = ("torch_", "psm_", "sem.mp-", "nccl-")


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """From now on descendants whose parent has died become our children (a subreaper)."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """In a new process: be told to stop when the parent dies, however it dies."""
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def send(pid: int, number: int) -> None:
    """Signal a process that may have gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def reap(*, except_pid: int) -> list[hang.Process]:
    """Take leave of dead children, but for one; returns those that live."""
    alive = []
    for child in hang.children(os.getpid()):
        if child.pid == except_pid:
            continue
        if child.state == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)
        else:
            alive.append(child)
    return alive


def kill_all() -> None:
    """Kill our children. Theirs become ours and are next."""
    for child in hang.children(os.getpid()):
        hang.end(child)


def shared_memory() -> set[str]:
    """The names in /dev/shm that a run may have made; other programs have theirs there, too."""
    try:
        return {path.name for path in _SHARED_MEMORY.iterdir() if path.name.startswith(_OURS)}
    except OSError:
        return set()


def remove_shared_memory(before: set[str]) -> list[str]:
    """Remove segments that came since then, are of this user, and that no process has open."""
    removed = []
    new = shared_memory() - before
    used = _mapped() if new else set()
    for name in new:
        path = _SHARED_MEMORY / name
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid() and str(path) not in used:
                path.unlink()
                removed.append(name)
    return removed


def _mapped() -> set[str]:
    """Files in /dev/shm that a process maps or has open, as far as this user may see."""
    used = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for line in (entry / "maps").read_text().splitlines():
                _, _, name = line.partition(" /dev/shm/")
                if name:
                    used.add(str(_SHARED_MEMORY / name))
            for link in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):  # closed just now: the others still count
                    used.add(str(link.readlink()))
    return used
