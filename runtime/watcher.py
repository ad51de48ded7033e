"""The watcher: a small process beside each rank that finds when the rank hangs, and ends it.

`runtime.watchdog` starts it as `python -S -E -m runtime.watcher SETTINGS`. A thread in the rank
could not do this: it stands still where the rank is stopped, or where a C extension holds the GIL.
Standard library only, some 12 MB; it ends when its rank has ended.

What it writes into RUN/health, for people, for the supervisor and for the other ranks' watchers:
`rank_N.json` the last beat, `failure_TOKEN.json` what went wrong first, `hang_N.json` and
`stacks_TOKEN_N.txt` the evidence at a hang.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from runtime import hang
from runtime.hang import CLOSED, FAILED, RECORD, RUNNING, Beat, Process

PEER_GRACE_S = 5.0  # for ranks to end by themselves after one of them failed
_WORKERS_S = 2.0  # for its loader workers to end after a rank has
_LOOK_S = 1.0  # how often at least to look for another rank's failure
_IGNORED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGQUIT")  # the rank is who decides


class Settings(NamedTuple):
    """What the rank tells its watcher."""

    pid: int
    rank: int
    world_size: int
    health: str  # the directory, absolute
    token: str  # of this start of the run, the same on all ranks
    start_timeout_s: float
    hang_timeout_s: float
    record_fd: int
    stacks_fd: int


def first_failure(health: Path, token: str, failure: dict[str, Any]) -> bool:
    """Write down what went wrong, unless another rank was first."""
    try:
        with (health / f"failure_{token}.json").open("x", encoding="utf-8") as file:
            file.write(json.dumps(failure))
    except OSError:  # it exists, or the disk is full: then the line on stderr has to do
        return False
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where it is missing or not whole yet."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class Watcher:
    """Watches one rank, and knows of the others what their watchers wrote down."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pid = settings.pid
        self.health = Path(settings.health)
        self.host = socket.gethostname()
        self.beat = Beat()
        self.silent_s = 0.0  # without progress; time in which we stood still ourselves is left out
        self.workers: list[Process] = []
        self._published: tuple[Beat, float] | None = None
        self._failed_s = 0.0  # since a failure was seen, of this rank or another

    @property
    def timeout_s(self) -> float:
        """How long the rank may be silent."""
        tight = self.beat.is_tight
        return self.settings.hang_timeout_s if tight else self.settings.start_timeout_s

    @property
    def interval_s(self) -> float:
        """How often to publish: a fortieth of the timeout, so that all of it stays below 20 %."""
        shorter = min(self.settings.start_timeout_s, self.settings.hang_timeout_s)
        return min(max(shorter / 40, 0.02), 10.0)

    def watch(self) -> None:
        """Until the rank has ended, was closed, or had to be ended."""
        poll = select.poll()
        with contextlib.suppress(ProcessLookupError):
            poll.register(os.pidfd_open(self.pid), select.POLLIN)
        poll.register(sys.stdin.fileno(), select.POLLIN)  # the rank says goodbye
        self._publish()
        before = time.monotonic()
        while True:
            interval = min(self.interval_s, _LOOK_S)
            is_gone = os.getppid() != self.pid  # also before we were there to see it
            happened = is_gone or poll.poll(interval * 1000)
            now = time.monotonic()
            passed, before = now - before, now
            if passed > 5 * interval + 2.0:  # we were stopped as well: Ctrl-Z, a suspended job
                passed = interval
            self._look(passed)
            if happened:
                self._rank_ended()
                return
            self._look_at_others(passed)
            if self._is_hanging():
                self._report(is_first=True)

    def _look(self, passed_s: float) -> None:
        beat = Beat.unpack(os.pread(self.settings.record_fd, RECORD.size, 0))
        self.silent_s = 0.0 if beat != self.beat else self.silent_s + passed_s
        self.beat = beat
        self.workers = [c for c in hang.children(self.pid) if c.pid != os.getpid()] or self.workers
        due = self._published is None or time.monotonic() - self._published[1] >= self.interval_s
        if due and (self._published is None or self._published[0] != beat):
            self._publish()

    def _publish(self) -> None:
        self._write(f"rank_{self.settings.rank:05d}.json", self._state())
        self._published = self.beat, time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "rank": self.settings.rank,
            "world_size": self.settings.world_size,
            "token": self.settings.token,
            "host": self.host,
            "pid": self.pid,
            **self.beat._asdict(),
        }

    def _write(self, name: str, values: dict[str, Any]) -> None:
        """Whole or not at all; a full disk must not end the watch."""
        try:
            temporary = self.health / f".{name}.{os.getpid()}"
            temporary.write_text(json.dumps(values), encoding="utf-8")
            temporary.replace(self.health / name)
        except OSError as error:
            print(f"watchdog: {self.health / name}: {error.strerror}", file=sys.stderr)

    def _is_hanging(self) -> bool:
        if self.silent_s <= self.timeout_s or self.beat.end != RUNNING:
            return False
        found = hang.process(self.pid)
        return (found is not None and found.state in "Tt") or not self._others_progress()

    def _others_progress(self) -> bool:
        """Whether a rank was heard of within the timeout, by the clock of the file system.

        Ranks wait for one that is at work, such as on a large checkpoint, as long as it beats.
        """
        self._write(f"silent_{self.settings.rank:05d}.json", {"silent_s": self.silent_s})
        try:
            now = (self.health / f"silent_{self.settings.rank:05d}.json").stat().st_mtime
        except OSError:
            return False
        for rank in range(self.settings.world_size):
            if rank == self.settings.rank:
                continue
            try:
                heard = (self.health / f"rank_{rank:05d}.json").stat().st_mtime
            except OSError:
                continue
            if now - heard <= self.timeout_s:
                return True
        return False

    def _look_at_others(self, passed_s: float) -> None:
        """End a rank that stays on after a failure: it may wait for the failed one for ever."""
        if self.beat.end == FAILED:
            self._failed_s += passed_s
            if self._failed_s > 2 * PEER_GRACE_S:
                self._end_rank()
            return
        failure = read_json(self.health / f"failure_{self.settings.token}.json")
        if failure is None or failure["kind"] == "launcher":  # it is saved, and ends by itself
            return
        if failure["kind"] == "hang":
            self._report()
        self._failed_s += passed_s
        if self._failed_s > PEER_GRACE_S or self._is_hanging():
            self._save_stacks(self._stacks())
            self._say(f"rank {self.settings.rank} is ended, since {failure['what']}")
            self._end_rank()

    def _rank_ended(self) -> None:
        """Write down the end of the rank, and leave none of its workers behind."""
        self._publish()
        if self.beat.end == CLOSED:
            sys.exit()
        self._fail(
            "ended", f"rank {self.settings.rank} ended suddenly {self._where()}; was it killed?"
        )
        self._end_workers()

    def _end_workers(self) -> None:
        """Those that do not go by themselves, as multiprocessing's tracker does after its work."""
        deadline = time.monotonic() + _WORKERS_S
        while left := [w for w in self.workers if hang.is_alive(w)]:
            if time.monotonic() > deadline:
                for worker in left:
                    hang.end(worker)
                return
            time.sleep(0.05)

    def _fail(self, kind: str, what: str) -> None:
        failure = {**self._state(), "kind": kind, "what": what, "time": time.time()}
        first_failure(self.health, self.settings.token, failure)

    def _where(self) -> str:
        step = f"at step {self.beat.step}" if self.beat.step >= 0 else "before the first step"
        return f"in phase '{self.beat.phase}' {step}"

    def _report(self, *, is_first: bool = False) -> None:
        """Collect the evidence with the other watchers, say which rank it is, and end ours."""
        started = time.monotonic()
        found = hang.process(self.pid)  # before the signals change it
        if is_first:
            self._fail("hang", f"rank {self.settings.rank} made no progress {self._where()}")
        stacks = self._stacks()
        own = {
            **self._state(),
            "silent_s": self.silent_s,
            "state": found.state if found else "gone",
            "in_collective": hang.is_in_collective(stacks) if stacks else None,
            "worker": hang.worker_trouble(self.workers),
        }
        self._save_stacks(stacks, own)
        self._write(f"hang_{self.settings.rank:05d}.json", own)
        records = self._await_records(started + min(max(self.timeout_s / 10, 3.0), 30.0))
        records[self.settings.rank] = own
        if self.settings.rank == min(records):
            self._conclude(records)
        self._end_rank()

    def _await_records(self, deadline: float) -> dict[int, dict[str, Any]]:
        while True:
            records = self._read_all("hang")
            if len(records) == self.settings.world_size or time.monotonic() > deadline:
                return records
            time.sleep(0.05)

    def _read_all(self, kind: str) -> dict[int, dict[str, Any]]:
        found = {
            rank: read_json(self.health / f"{kind}_{rank:05d}.json")
            for rank in range(self.settings.world_size)
        }
        token = self.settings.token
        return {r: values for r, values in found.items() if values and values["token"] == token}

    def _conclude(self, records: dict[int, dict[str, Any]]) -> None:
        beats = {**self._read_all("rank"), self.settings.rank: self._state()}
        line = hang.verdict(records, beats)
        self._write(
            f"failure_{self.settings.token}.json",
            {**self._state(), "kind": "hang", "what": line, "time": time.time()},
        )
        self._say(f"{line}; stacks of all ranks in {self._stacks_path('*')}")

    def _stacks(self) -> str:
        """Python's stacks of all threads of the rank and its workers, written by themselves."""
        asked = [p for p in (self.pid, *(w.pid for w in self.workers)) if self._asks(p)]
        if not asked:
            return ""
        deadline = time.monotonic() + min(max(self.timeout_s / 20, 2.0), 3.0)
        size, quiet = -1, 0
        while time.monotonic() < deadline and quiet < 5:
            time.sleep(0.01)
            now = os.fstat(self.settings.stacks_fd).st_size
            quiet = quiet + 1 if now == size and now > 0 else 0
            size = now
        # The signal may have woken it: it must not train on until it is ended.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)
        data = os.pread(self.settings.stacks_fd, max(size, 0), 0)
        return data.decode("utf-8", errors="replace")

    def _asks(self, pid: int) -> bool:
        """Ask a process for its stacks, unless it has no handler and would die of it."""
        found = hang.process(pid)
        if found is None or found.state == "Z" or not hang.catches(pid, signal.SIGUSR2):
            return False
        try:
            os.kill(pid, signal.SIGUSR2)
            if found.state in "Tt":
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return False  # gone in between
        return True

    def _save_stacks(self, stacks: str, state: dict[str, Any] | None = None) -> None:
        threads = hang.threads(self.pid)
        head = json.dumps(state or self._state())
        text = f"{head}\n{threads}\n\n{stacks or 'the rank did not answer'}"
        try:
            path = self._stacks_path(f"{self.settings.rank:05d}")
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            self._say(f"{self.health}: {error.strerror}; the stacks:\n{text}")

    def _stacks_path(self, rank: str) -> Path:
        return self.health / f"stacks_{self.settings.token}_{rank}.txt"

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody may read it any more
            print(f"error: {line}", file=sys.stderr, flush=True)

    def _end_rank(self) -> None:
        """Kill the rank and its workers. Launchers see a failure: -9, in a shell 137."""
        self._publish()
        if rank := hang.process(self.pid):
            hang.end(rank)
        self._end_workers()
        sys.exit()


def main() -> None:
    """Watch the process that started this one."""
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    Watcher(Settings(**json.loads(sys.argv[1]))).watch()


if __name__ == "__main__":
    main()
