"""SIGTERM, SIGINT, SIGUSR1 and a launcher that died all mean: save, then leave."""

import os
import signal
import time
from pathlib import Path
from types import FrameType

from runtime import outcome
from runtime.errors import EXIT_PREEMPTED, Stopped

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_LAUNCHERS = ("deepspeed", "torch.distributed.run", "torchrun")


class StopRequest:
    """Remembers that somebody asked this process to stop.

    The same signal again, after a moment, ends the process at once. Repeats in that moment do not,
    and neither do others: where Slurm or a terminal signals all processes, torchrun passes the
    signal on a second time, and DeepSpeed's launcher answers Ctrl-C with a SIGTERM of its own.
    """

    same_request_s = 2.0

    def __init__(self, *, raises: bool = False) -> None:
        """`raises`: there is nothing to save yet, leave at once by raising Stopped."""
        self._raises = raises
        # What an earlier one of this process has heard counts: a run that is stopped while it
        # starts stops as soon as its loop looks.
        before = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        earlier = before if isinstance(before, StopRequest) else None
        self.reason: str | None = None
        self._first: dict[int, float] = earlier._first if earlier else {}
        self._watched: dict[int, int] = earlier._watched if earlier else _launcher_parents()
        self._previous = {number: signal.signal(number, self._on_signal) for number in STOPS}
        if earlier is not None:  # now that it hears nothing more
            self.reason = self.reason or earlier.reason

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._first.setdefault(number, now) > self.same_request_s:
            outcome.tell(status=EXIT_PREEMPTED)
            os._exit(EXIT_PREEMPTED)
        self.reason = self.reason or signal.Signals(number).name
        if self._raises:
            raise Stopped

    def check(self) -> bool:
        """Whether to stop; also notices a launcher that was killed and can't tell us."""
        if self.reason is None:
            for child, parent in self._watched.items():
                if _parent_of(child) != parent:
                    self.reason = "the launcher is gone"
                    outcome.tell(launcher_gone=True)
        return self.reason is not None

    def restore(self) -> None:
        """Give the signals back to their previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _launcher_parents() -> dict[int, int]:
    """Our ancestors that are launcher processes, each as child pid → parent pid.

    `deepspeed` starts a second launcher process, which it does not forward SIGTERM to: without
    this watch its workers would train on as orphans.
    """
    watched: dict[int, int] = {}
    child = os.getpid()
    while (parent := _parent_of(child)) > 1 and _is_launcher(parent):
        watched[child] = parent
        child = parent
    return watched


def _parent_of(pid: int) -> int:
    try:
        # The command name in field 2 may hold spaces: count from its closing bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[1])
    except (OSError, IndexError, ValueError):
        return os.getppid() if pid == os.getpid() else 0


def _is_launcher(pid: int) -> bool:
    try:
        command = (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return False
    return any(name in command for name in _LAUNCHERS) and "python" in command
