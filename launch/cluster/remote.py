"""A run on several machines: over ssh, torchrun under a supervisor of its own on each.

The remote supervisor stops its ranks when the connection ends, whichever side ends it.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.cluster import lifeline
from launch.cluster.hosts import hosts_text, ssh_command
from launch.supervise import END, End, Limits
from runtime.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, EXIT_PREEMPTED
from runtime.launcher import HOSTS

_ROOT = Path(__file__).resolve().parents[2]
_MARGIN_S = 30.0  # for the connection, beyond the grace of the remote supervisor


class _Host:
    """A machine and the ssh that runs there."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for us
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout.fileno()
        os.set_blocking(self._output, False)
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        self._line = b""
        self.end: End | None = None  # as the remote supervisor told it

    def poll(self) -> int | None:
        """Its exit status, once there is one; its lines go on to our output."""
        status = self.process.poll()
        while data := self._read():
            *lines, self._line = (self._line + data).split(b"\n")
            for line in lines:
                self._pass_on(line.decode(errors="replace"))
        return status

    def _read(self) -> bytes:
        try:
            return os.read(self._output, 65536)
        except BlockingIOError:
            return b""

    def _pass_on(self, line: str) -> None:
        if line.startswith(END):
            self.end = End(**json.loads(line.removeprefix(END)))
        else:
            print(f"[{self.name}] {line}", flush=True)

    def tell(self, word: bytes) -> None:
        """Say something to the remote supervisor, if it still listens."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            with contextlib.suppress(OSError):  # full, or gone: ssh finds out
                os.write(self.process.stdin.fileno(), word)

    def stop(self) -> None:
        """End the input of the remote supervisor, which asks its ranks to save."""
        assert self.process.stdin is not None
        self.process.stdin.close()


def host_commands(
    hosts: Mapping[str, int], script: Sequence[str], port: int, limits: Limits
) -> dict[str, list[str]]:
    """The ssh of every host: a supervisor, torchrun, and `script`. Raises UserError."""
    first = next(iter(hosts))
    supervise = [sys.executable, "-m", "launch", "supervise", "--max-restarts", "0"]
    supervise += ["--grace", str(limits.grace_s), "--until-eof", "--"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), HOSTS: hosts_text(hosts)}
    found = {}
    for number, (host, slots) in enumerate(hosts.items()):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(hosts))]
        torchrun += ["--node-rank", str(number), "--nproc-per-node", str(slots)]
        torchrun += ["--master-addr", first, "--master-port", str(port)]
        found[host] = ssh_command(host, [*supervise, *torchrun, *script], environment, Path.cwd())
    return found


class Remote:
    """torchrun with `script` on every host; the first one is where they meet."""

    def __init__(
        self, hosts: dict[str, int], script: Sequence[str], port: int, limits: Limits
    ) -> None:
        commands = host_commands(hosts, script, port, limits)
        self._hosts = [_Host(host, command) for host, command in commands.items()]
        self._kill_at = float("inf")
        self._grace_s = limits.grace_s
        self._heard: set[int] = set()
        self._failed = False
        self._beat_at = 0.0

    def poll(self) -> int | None:
        """A status once all have ended; when one fails, the others are asked to."""
        statuses = [host.poll() for host in self._hosts]
        now = time.monotonic()
        if any(status is not None and status != EXIT_OK for status in statuses):
            if not self._failed:
                self._tell_all(lifeline.HURRY)
            self._failed = True
            self._stop_all(self._grace_s + _MARGIN_S)
        elif now > self._beat_at:
            self._beat_at = now + lifeline.BEAT_S
            self._tell_all(lifeline.BEAT)
        if time.monotonic() > self._kill_at:
            for host in self._hosts:
                host.process.kill()
        return None if None in statuses else EXIT_OK

    def stop(self, number: int) -> None:
        """Ask all to save and leave; at the second signal they have a moment only."""
        # As long as their saves take; a lost connection is ssh's to find.
        self._stop_all(5.0 if number in self._heard else float("inf"))
        self._heard.add(number)

    def _tell_all(self, word: bytes) -> None:
        for host in self._hosts:
            host.tell(word)

    def _stop_all(self, patience_s: float) -> None:
        self._kill_at = min(self._kill_at, time.monotonic() + patience_s)
        for host in self._hosts:
            host.stop()

    def end(self) -> End:
        """The worst of what the hosts tell."""
        # A host that was lost first: what the others say follows from it.
        self._hosts.sort(key=lambda host: host.end is not None)
        ends = [host.end or self._lost(host) for host in self._hosts]
        statuses = {end.status for end in ends}
        step = max(end.step for end in ends)
        if statuses <= {EXIT_OK, EXIT_PREEMPTED}:
            return End(max(statuses), step, "")
        if EXIT_BAD_INPUT in statuses:
            return End(EXIT_BAD_INPUT, step, "")
        failed = [
            f"{host.name}: {end.why}"
            for host, end in zip(self._hosts, ends, strict=True)
            if end.status not in (EXIT_OK, EXIT_PREEMPTED)
        ]
        return End(EXIT_FAILED, step, "; ".join(failed))

    @staticmethod
    def _lost(host: _Host) -> End:
        status = host.process.returncode
        if status == EXIT_BAD_INPUT:
            return End(EXIT_BAD_INPUT, -1, "")
        return End(
            EXIT_FAILED, -1, f"the connection was lost, or there never was one (ssh: {status})"
        )
