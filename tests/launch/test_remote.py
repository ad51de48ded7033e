"""Runs on two machines over an ssh that stays on this one."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.test_supervise import mentioning
from tests.processes import ROOT, environment, free_port

SSH = '#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n'


def start(tmp_path: Path, plan: str, *options: str) -> subprocess.Popen[str]:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH)
    ssh.chmod(0o700)
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    command = [sys.executable, "-m", "launch", "supervise", *options]
    command += ["--hostfile", str(tmp_path / "hosts"), "--master-port", str(free_port()), "--"]
    path = environment()["PATH"]
    return subprocess.Popen(
        [*command, "tests/launch/supervised.py", str(tmp_path / "run"), plan],
        cwd=ROOT,
        env={**environment(), "PATH": f"{ssh.parent}:{path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until_both_wait(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    hosts = set()
    while len(hosts) < 2:
        line = process.stdout.readline()
        assert line, "it ended"
        if line.endswith("] waiting\n"):
            hosts.add(line)


def test_a_run_ends_well_on_all(tmp_path: Path) -> None:
    process = start(tmp_path, "done")
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 0, output
    assert len((tmp_path / "run" / "starts").read_text()) == 2


@pytest.mark.slow
def test_all_start_again_when_one_fails(tmp_path: Path) -> None:
    # The first two starts are one on each machine: a rank that fails beside one that waits.
    process = start(tmp_path, "wait,7,done", "--max-restarts", "2")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "the first failure: rank 0 failed after 7" in output
    assert mentioning(str(tmp_path / "run")) == []


def test_a_signal_stops_all(tmp_path: Path) -> None:
    process = start(tmp_path, "wait")
    wait_until_both_wait(process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    assert mentioning(str(tmp_path / "run")) == []


def test_a_connection_that_dies_leaves_nothing_there(tmp_path: Path) -> None:
    process = start(tmp_path, "wait")
    wait_until_both_wait(process)
    process.kill()
    deadline = time.monotonic() + 60
    while mentioning(str(tmp_path / "run")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
