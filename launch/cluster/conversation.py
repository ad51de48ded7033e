"""Questions to a host over ssh, each with a deadline; what went wrong becomes one line.

Nothing here waits without end: ssh gives up a connection after 10 s, and a host that accepts one
and then says nothing is left at the deadline.
"""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.cluster.hosts import CONNECT_S, ssh_command
from launch.cluster.printing import ROOT
from launch.cluster.probe import MARK

ANSWER_S = 20.0  # for what a host is asked first
_PROBE = [sys.executable, "-u", "-m", "launch.cluster.probe"]
_SSH_FAILED = 255
_NO_FOLDER, _NO_PROGRAM = 125, 127  # env's own statuses

# What ssh says → the trouble and its mend. In this order: the later ones are parts of other texts.
_SSH_ERRORS = (
    (
        "HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed: was it reinstalled, or has another machine its name? Once you "
        "are sure: ssh-keygen -R {host}",
    ),
    (
        "Host key verification failed",
        "its host key is not known; connect once by hand and compare it: ssh {host}",
    ),
    (
        "Permission denied",
        "ssh is denied: no key that it accepts without a password; ssh-copy-id {host}",
    ),
    (
        "Could not resolve hostname",
        "no machine has this name; correct the host file, or add it to DNS or /etc/hosts",
    ),
    (
        "Connection refused",
        "ssh is refused: no sshd listens on its port; start it there (systemctl start ssh)",
    ),
    ("No route to host", "no way to it; is it switched on, and its network cable in?"),
    (
        "timed out",
        "no answer to ssh in {seconds} s; is it switched on, and does a firewall let ssh through?",
    ),
    (
        "Connection closed",
        "sshd closed the connection: it is starting, full (MaxStartups), or refuses this user",
    ),
)


class HostError(Exception):
    """A host does not answer as it should; the text is for the person, without the host's name."""


class Conversation:
    """A probe that runs on a host; on this machine where there is no host."""

    def __init__(self, host: str, environment: Mapping[str, str], folder: Path) -> None:
        self.host = host or "this machine"
        self.deadline = time.monotonic() + ANSWER_S
        self._buffer = b""
        self._folder = folder
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        self.process = subprocess.Popen(
            probe_command(host, environment, folder) if host else _PROBE,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            process_group=0,  # Ctrl-C is for us
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self.output = self.process.stdin, self.process.stdout.fileno()
        os.set_blocking(self.output, False)

    def allow(self, seconds: float) -> None:
        """Give more time, from now on."""
        self.deadline = time.monotonic() + seconds

    def ask(self, ask: str, **words: Any) -> dict[str, Any]:
        """The answer to a question of `launch/cluster/probe.py`. Raises HostError."""
        self.send(ask, **words)
        while True:
            answers = self.read(self.deadline - time.monotonic())
            if answers:
                return answers[0]

    def send(self, ask: str, **words: Any) -> None:
        """Ask, without waiting for the answer."""
        with contextlib.suppress(BrokenPipeError):  # why, is told where the answer is read
            self._input.write(json.dumps({"ask": ask, **words}).encode() + b"\n")
            self._input.flush()

    def read(self, patience_s: float) -> list[dict[str, Any]]:
        """Answers that have come; waits for the next bytes only. Raises HostError."""
        if not select.select([self.output], [], [], max(patience_s, 0.0))[0]:
            raise HostError(
                f"no answer in {ANSWER_S:.0f} s: its shell, its disk or its Python hangs; "
                f"try `ssh {self.host} true`"
            )
        data = os.read(self.output, 65536)
        if not data:
            raise HostError(self._why())
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        texts = [line.decode(errors="replace") for line in lines]
        return [json.loads(t.removeprefix(MARK)) for t in texts if t.startswith(MARK)]

    def _why(self) -> str:
        """Why it ended without an answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        said = self.said()
        status = self.process.returncode
        if status == _SSH_FAILED:
            return explained(self.host, said)
        last = said.strip().splitlines()[-1:] or ["nothing was said"]
        if status == _NO_FOLDER:
            return f"no folder {self._folder} there; runs want the same paths on every host"
        if status == _NO_PROGRAM:
            return f"no {sys.executable} there; set up the environment under the same path"
        if "No module named 'launch" in said:
            return f"no source tree at {ROOT} there, or an older one; copy it to the same path"
        return f"the probe ended with status {status}: {_printable(last[0])}"

    def said(self) -> str:
        """What came on the error output."""
        self._errors.seek(0)
        return self._errors.read(65536).decode(errors="replace")

    def end(self) -> None:
        """Leave; the probe ends what it started."""
        with contextlib.suppress(OSError):
            self._input.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()


def probe_command(host: str, environment: Mapping[str, str], folder: Path) -> list[str]:
    """The words that start the probe on a host."""
    return ssh_command(host, _PROBE, {**environment, "PYTHONPATH": str(ROOT)}, folder)


def explained(host: str, said: str) -> str:
    """What ssh says, with its mend."""
    for part, meaning in _SSH_ERRORS:
        if part in said:
            return meaning.format(host=host, seconds=CONNECT_S)
    last = said.strip().splitlines()[-1:] or ["nothing was said"]
    return f"ssh failed: {_printable(last[0])}; try `ssh {host} true`"


def _printable(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:200]
