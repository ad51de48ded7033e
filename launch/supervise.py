"""`python -m launch supervise -- COMMAND …`: start a run again when it fails, leave nothing behind.

Takes the command of any launcher (`deepspeed …`, `torchrun …`, `python …`). Needs no torch. What
the ranks tell (`runtime/outcome.py`) counts more than the launcher's exit status.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

from launch import leftovers
from launch.cluster.lifeline import Lifeline
from runtime import hang, outcome
from runtime.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, EXIT_PREEMPTED, UserError
from runtime.signals import STOPS, StopRequest
from runtime.watcher import read_json

END = "ingot-end "
_LOOK_S = 0.1
_LEFTOVERS_S = 5.0  # for what is not a rank, such as loader workers whose rank has gone
_TRACEBACK_LINES = 15


class Limits(NamedTuple):
    """When to give up."""

    max_restarts: int = 10
    same_step: int = 3  # failures in a row in which no step beyond the furthest was completed
    grace_s: float = 60.0  # for ranks to end after their launcher has


class End(NamedTuple):
    """How one start of the command ended."""

    status: int
    step: int  # completed at last; -1: none
    why: str


class Started(Protocol):
    """A command that runs: on this machine, or on several over ssh."""

    def poll(self) -> int | None:
        """The exit status, once there is one."""

    def stop(self, number: int) -> None:
        """Pass a signal on."""

    def end(self) -> End:
        """After it has ended: wait for what it left, and judge."""


class Supervisor:
    """Starts a command until it is done, cannot be started, was stopped, or fails for good.

    `until_eof`: the end of our input means stop, as when the ssh that started us loses its
    connection (`launch/cluster/lifeline.py`); our last line then tells how it ended.
    """

    def __init__(
        self, start: Callable[[], Started], limits: Limits, *, until_eof: bool = False
    ) -> None:
        self._start = start
        self._limits = limits
        self._lifeline = Lifeline(sys.stdin.fileno() if until_eof else None)
        self._until_eof = until_eof
        self._asked: list[int] = []  # signals, in their order
        self._heard: dict[int, float] = {}  # when each came first

    def run(self) -> int:
        """Run to the end; returns the exit status."""
        for number in STOPS:
            signal.signal(number, self._on_signal)
        furthest, in_place, restarts = -1, 0, 0
        while True:
            end = self._once()
            if self._until_eof:
                print(END + json.dumps(end._asdict()), flush=True)
            if end.status in (EXIT_OK, EXIT_BAD_INPUT, EXIT_PREEMPTED) or self._asked:
                return end.status
            in_place = 1 if end.step > furthest else in_place + 1
            furthest = max(furthest, end.step)
            _say(end.why)
            if in_place >= self._limits.same_step:
                where = f"at step {furthest}" if furthest >= 0 else "before the first step"
                return self._give_up(f"it failed {in_place} times in a row {where}")
            if restarts >= self._limits.max_restarts:
                return self._give_up(f"it was started again {restarts} times")
            restarts += 1
            pause = min(2.0 ** (in_place - 1), 30.0)  # short again after progress
            _say(f"restart {restarts} of {self._limits.max_restarts} in {pause:.0f} s")
            self._pause(pause)
            if self._asked:
                return EXIT_PREEMPTED  # what was saved is whole

    def _once(self) -> End:
        started = self._start()
        passed_on = 0
        while started.poll() is None:
            asked = self._asked[passed_on:]
            for number in asked:
                started.stop(number)
            passed_on += len(asked)  # not all: another may have come meanwhile
            self._pause(_LOOK_S, until_signal=passed_on)
        return started.end()

    def _pause(self, seconds: float, *, until_signal: int = 0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and len(self._asked) == until_signal:
            time.sleep(min(_LOOK_S, seconds))
            self._asked += [signal.SIGTERM] * self._lifeline.requests()

    def _give_up(self, why: str) -> int:
        print(f"error: gave up: {why}; the last checkpoint is whole", file=sys.stderr, flush=True)
        return EXIT_FAILED

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # As the ranks do: at once twice is once, after a moment it means at once.
        now = time.monotonic()
        first = self._heard.setdefault(number, now)
        if first == now or now - first > StopRequest.same_request_s:
            self._asked.append(number)


class Local:
    """A command on this machine, with all that it starts. Raises UserError where there is none."""

    def __init__(self, command: list[str], limits: Limits) -> None:
        self._limits = limits
        self._began = time.time()
        self._shared_memory = leftovers.shared_memory()
        self._directory = Path(tempfile.mkdtemp(prefix="ingot-supervise-"))
        self._stopping: int | None = None
        self._kill_at = float("inf")
        self._asked: set[int] = set()  # pids of ranks that were told to stop
        leftovers.adopt_orphans()
        try:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, outcome.DIRECTORY: str(self._directory)},
                stdin=subprocess.DEVNULL,
                # Ctrl-C reaches us alone, and goes from here to the ranks: DeepSpeed's launcher
                # would kill them after 30 s, torchrun as well.
                process_group=0,
                preexec_fn=leftovers.end_with_parent,
            )
        except OSError as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise UserError(
                f"{command[0][:200]!r} cannot be started: {error.strerror}; give a program and its "
                "arguments after --",
                status=EXIT_BAD_INPUT,
            ) from error

    def poll(self) -> int | None:
        """Also reaps what was orphaned."""
        leftovers.reap(except_pid=self._process.pid)
        if time.monotonic() > self._kill_at:
            leftovers.kill_all()
        return self._process.poll()

    def stop(self, number: int) -> None:
        """Signal the ranks, or the launcher as long as none is there."""
        if number == self._stopping:  # the ranks end at once at the second; so do we
            self._kill_at = time.monotonic() + _LEFTOVERS_S
        self._stopping = number
        self._send(self._ranks() or {self._process.pid}, number)

    def _send(self, pids: set[int], number: int) -> None:
        for pid in pids:
            self._asked.add(pid)
            leftovers.send(pid, number)

    def _ranks(self) -> set[int]:
        """Pids of the ranks that are here and have not said how they end."""
        pids = {v["pid"] for v in outcome.told(self._directory).values() if "status" not in v}
        return {pid for pid in pids if (found := hang.process(pid)) and found.state != "Z"}

    def has_ranks(self) -> bool:
        """Whether ranks run on this machine, and have not said how they end."""
        return bool(self._ranks())

    def end(self) -> End:
        """Wait for ranks that are still saving, then end whatever is left."""
        began = time.monotonic()
        while leftovers.reap(except_pid=self._process.pid):
            ranks = self._ranks()
            if self._stopping is not None:  # also those that came after their launcher went
                self._send(ranks - self._asked, self._stopping)
            now = time.monotonic()
            patience = self._limits.grace_s if ranks else _LEFTOVERS_S
            if now - began > patience or now > self._kill_at:
                leftovers.kill_all()
            time.sleep(_LOOK_S)
        told = outcome.told(self._directory)
        shutil.rmtree(self._directory, ignore_errors=True)
        for name in leftovers.remove_shared_memory(self._shared_memory):
            _say(f"removed /dev/shm/{name}, which the run had left")
        return self._judge(told)

    def _judge(self, told: dict[int, dict[str, Any]]) -> End:
        code = self._process.returncode
        failure = None
        code = 128 - code if code < 0 else code  # as shells say it
        statuses = {values.get("status") for values in told.values()}
        run_dirs = [Path(v["run_dir"]) for v in told.values() if "run_dir" in v]
        if self._stopping is not None and not run_dirs and code != EXIT_BAD_INPUT:
            status = EXIT_PREEMPTED  # before there was anything to save
        elif not told:
            status = code
        elif EXIT_BAD_INPUT in statuses:
            status = EXIT_BAD_INPUT
        elif statuses <= {EXIT_OK, EXIT_PREEMPTED}:
            status = EXIT_PREEMPTED if EXIT_PREEMPTED in statuses else EXIT_OK
        else:
            status = code or EXIT_FAILED
            if status in (EXIT_PREEMPTED, EXIT_BAD_INPUT):
                status = EXIT_FAILED  # one rank left so, another did not
        why, step = f"the command ended with status {code}", -1
        if run_dirs:
            step = last_step(run_dirs[0] / "health")
            failure = first_failure(run_dirs[0] / "health", self._began)
        if failure is not None:
            why = told_of(failure)
            if failure["kind"] == "launcher" and self._stopping is None:
                status = EXIT_FAILED  # the ranks have saved and said 75, but nobody asked for it
        return End(status, step, why)


def last_step(health: Path) -> int:
    """Steps that the rank which came furthest had completed; -1 where none is known."""
    beats = [read_json(path) for path in health.glob("rank_*.json")]
    return max((beat["step"] for beat in beats if beat), default=-1)


def first_failure(health: Path, since: float) -> dict[str, Any] | None:
    """What went wrong first in the last start of a run, on whichever machine."""
    found = [read_json(path) for path in sorted(health.glob("failure_*.json"))]
    recent = [failure for failure in found if failure and failure["time"] >= since]
    return recent[-1] if recent else None


def told_of(failure: dict[str, Any]) -> str:
    """The rank and what happened to it, with its traceback's end."""
    lines = failure.get("traceback", "").rstrip().splitlines()
    tail = "".join(f"\n    {line}" for line in lines[-_TRACEBACK_LINES:])
    return f"the first failure: {failure['what']}{tail}"


def _say(text: str) -> None:
    print(f"supervise: {text}", file=sys.stderr, flush=True)
