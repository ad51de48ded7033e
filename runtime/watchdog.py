"""The rank's side of the watchdog: a sign of life that costs a microsecond.

A watcher process (`runtime/watcher.py`) beside each rank reads it. Where a rank makes no progress
for too long it writes down the stacks of all ranks, names the one that the others wait for, and
ends the run. Linux only; elsewhere nothing is watched.
"""

import faulthandler
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Self

from runtime import dist, outcome, watcher
from runtime.dist import Ranks
from runtime.errors import UserError
from runtime.hang import CLOSED, FAILED, RECORD, RUNNING, Beat
from runtime.watcher import Settings

_ROOT = Path(__file__).resolve().parent.parent
_KEPT_FAILURES = 5
_TRACEBACK_CHARACTERS = 20_000


class Watchdog:
    """Watches this rank. Making it is collective: all ranks agree on which start of the run it is.

    `start_timeout_s`: without progress for so long before the first completed step, the run ends;
    `hang_timeout_s`: the same after it.
    """

    def __init__(
        self, run_dir: Path, ranks: Ranks, *, start_timeout_s: float, hang_timeout_s: float
    ) -> None:
        self._health = (run_dir / "health").resolve()
        self._ranks = ranks
        outcome.tell(run_dir=str(run_dir.resolve()))
        dist.together(self._tidy, only_main=True)
        token = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}_{os.urandom(3).hex()}"
        self._token = dist.gather_text(token)[0]
        self._beat = Beat()
        self._memory: mmap.mmap | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        if sys.platform == "linux":
            self._start(start_timeout_s, hang_timeout_s)

    def _tidy(self) -> None:
        """Remove the signs of life of an earlier start; keep the evidence of the last failures."""
        self._health.mkdir(parents=True, exist_ok=True)
        failures = sorted(self._health.glob("failure_*.json"))[:-_KEPT_FAILURES]
        old = [path.stem.removeprefix("failure_") for path in failures]
        for path in self._health.iterdir():
            if path.name.startswith(("rank_", "hang_", "silent_", ".")) or any(
                token in path.name for token in old
            ):
                path.unlink(missing_ok=True)

    def _start(self, start_timeout_s: float, hang_timeout_s: float) -> None:
        record, stacks = (os.memfd_create(name) for name in ("heartbeat", "stacks"))
        self._stacks = stacks
        os.ftruncate(record, RECORD.size)
        self._memory = mmap.mmap(record, RECORD.size)
        self._write()
        settings = Settings(
            os.getpid(),
            self._ranks.rank,
            self._ranks.world_size,
            str(self._health),
            self._token,
            start_timeout_s,
            hang_timeout_s,
            record,
            stacks,
        )
        self._watcher = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
            [sys.executable, "-S", "-E", "-m", watcher.__name__, json.dumps(settings._asdict())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=_ROOT,
            pass_fds=(record, stacks),
        )
        os.close(record)
        # Written by C code without the GIL, to memory: neither can hold it up.
        faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)

    def _write(self) -> None:
        if self._memory is not None:
            self._memory[:] = self._beat.pack()

    def beat(self, phase: str, step: int | None = None) -> None:
        """Say that this rank goes on, in which phase, and after how many completed steps.

        The phases of a loop: start, data, agree, step, evaluate, save. What follows the first
        `step` tightens the deadline.
        """
        last = self._beat
        if outcome.has_told("launcher_gone"):
            self._tell_launcher_gone()
        self._beat = Beat(
            last.sequence + 1,
            last.step if step is None else step,
            RUNNING,
            last.is_tight or (last.phase == "step" and phase != "step"),
            phase,
        )
        self._write()

    def _tell_launcher_gone(self) -> None:
        """To the supervisors on all machines: the run ends in good order, but nobody asked."""
        what = f"the launcher of rank {self._ranks.rank} was killed; the run was saved"
        self._first_failure("launcher", what)

    def pulse(self) -> None:
        """Say that a long wait within a phase goes on; from the thread of the loop alone."""
        self._beat = self._beat._replace(sequence=self._beat.sequence + 1)
        self._write()

    def close(self) -> None:
        """End the watch of a rank that is done. While an exception passes, it was a failure."""
        if self._beat.end != RUNNING:
            return
        failed = sys.exc_info()[0] is not None
        self._beat = self._beat._replace(end=FAILED if failed else CLOSED)
        self._write()
        if self._watcher is None or (failed and self._ranks.world_size > 1):
            return  # after a failure it watches on, until this process has ended: others may wait
        try:
            self._watcher.communicate(b"closed", timeout=2)
        except subprocess.TimeoutExpired:
            self._watcher.kill()
            self._watcher.wait()
        faulthandler.unregister(signal.SIGUSR2)
        os.close(self._stacks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        """Close, and say which rank failed first: on the others it shows as a lost connection.

        Raises UserError in place of an error that only followed from another rank's.
        """
        cause = self._cause(error) if error is not None else None
        self.close()
        if cause is not None:
            raise UserError(cause) from error

    def _cause(self, error: BaseException) -> str | None:
        """Write this rank's failure down if it is the first; otherwise say whose was."""
        path = self._health / f"failure_{self._token}.json"
        if dist.is_lost_peer(error):
            deadline = time.monotonic() + 2
            while watcher.read_json(path) is None and time.monotonic() < deadline:
                time.sleep(0.05)  # its watcher may need a moment, also to write it whole
        trace = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
        what = f"rank {self._ranks.rank} failed: {_last_line(error)}"
        if self._first_failure("failed", what, traceback=trace):
            return None
        first = watcher.read_json(path)
        if first is None or first["rank"] == self._ranks.rank or isinstance(error, UserError):
            return None
        return f"rank {self._ranks.rank} cannot go on: {first['what']} (details in {path})"

    def _first_failure(self, kind: str, what: str, **more: str) -> bool:
        state = {"rank": self._ranks.rank, "host": socket.gethostname(), "pid": os.getpid()}
        described = {"kind": kind, "what": what, "time": time.time(), **more}
        failure = {**state, **self._beat._asdict(), **described}
        return watcher.first_failure(self._health, self._token, failure)


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()
