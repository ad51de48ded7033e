"""Start ranks from the fork server, watch them and end them by their pids."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.processes import ROOT, environment, free_port

Fault = dict[str, Any]  # as tests.faults.injection describes them
PRETRAIN = "tests.faults.injection:pretrain"
STORAGE = "tests.faults.storage_worker:main"
PATIENCE_S = 120.0  # nothing here takes so long; only a hang does


class Process:
    """A rank: a child of the fork server."""

    def __init__(self, server: "ForkServer", pid: int, output: Path) -> None:
        self.pid = pid
        self.status: int | None = None  # negative: the signal that ended it
        self._server = server
        self._output = output
        self._handle = os.pidfd_open(pid)

    def has_ended(self, timeout_s: float = 0) -> bool:
        """Whether it has ended, waiting for that at most so long."""
        if self.status is None and select.select([self._handle], [], [], timeout_s)[0]:
            self.status = self._server.ask(do="reap", pid=self.pid)["status"]
            os.close(self._handle)
        return self.status is not None

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit status; AssertionError where it does not end."""
        assert self.has_ended(timeout_s), f"process {self.pid} does not end:\n{self.output()}"
        assert self.status is not None
        return self.status

    def send(self, number: int) -> None:
        """Signal it, if it is there to hear."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> int:
        """End it at once, stopped or not."""
        self.send(signal.SIGKILL)
        return self.wait()

    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""


class Run(list[Process]):
    """The ranks of one process group, in order."""

    def wait(self, timeout_s: float = PATIENCE_S) -> list[int]:
        """Exit statuses of all ranks."""
        deadline = time.monotonic() + timeout_s
        try:
            return [p.wait(max(0.0, deadline - time.monotonic())) for p in self]
        except AssertionError:
            self.kill()
            raise

    def kill(self) -> list[int]:
        """End all ranks at once."""
        for process in self:
            process.send(signal.SIGKILL)
        return [process.wait() for process in self]

    def wait_then_kill(self, patience_s: float) -> list[int]:
        """As a launcher does: when one rank ends badly, the others get a moment, then the end."""
        deadline = time.monotonic() + PATIENCE_S
        while (running := [p for p in self if not p.has_ended()]) and time.monotonic() < deadline:
            if any(p.status for p in self):
                deadline = min(deadline, time.monotonic() + patience_s)
            running[0].has_ended(0.01)
        return self.kill()

    def output(self) -> str:
        """What all ranks have printed, one after the other."""
        return "\n".join(f"--- rank {r}\n{p.output()}" for r, p in enumerate(self))


class ForkServer:
    """The server's near end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(DS_ACCELERATOR="cpu", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1"),
        )
        self._reply()

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server has ended"
        reply: dict[str, Any] = json.loads(line)
        return reply

    def start(
        self,
        arguments: Sequence[object],
        *,
        target: str = PRETRAIN,
        ranks: int = 1,
        faults: Sequence[Fault] = (),
        **extra: str,
    ) -> Run:
        """Start so many ranks of `target` with these arguments, and what is to go wrong in them."""
        self._count += 1
        shared = {"INGOT_FAULTS": json.dumps(list(faults)), **extra}
        if ranks > 1:
            shared |= {
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free_port()),
            }
        run = Run()
        for rank in range(ranks):
            mine = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            output = self._directory / f"run{self._count:05d}_rank{rank}.txt"
            reply = self.ask(
                do="spawn",
                target=target,
                argv=[str(a) for a in arguments],
                env=environment(**shared, **mine),
                output=str(output),
            )
            run.append(Process(self, reply["pid"], output))
        return run

    def close(self) -> None:
        """End the server, and with it what it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@contextlib.contextmanager
def fork_server(directory: Path) -> Iterator[ForkServer]:
    """A server for as long as the block runs."""
    server = ForkServer(directory)
    try:
        yield server
    finally:
        server.close()


def until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Wait for something to become true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)
    return found
