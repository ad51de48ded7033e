"""The supervisor starts a failed run again, up to its limits, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch import leftovers
from launch.supervise import End, Limits, Supervisor
from runtime.signals import STOPS
from tests.processes import ROOT, environment

SUPERVISE = [sys.executable, "-m", "launch", "supervise"]


def start(
    run_dir: Path, plan: str, *options: str, launcher: Sequence[str] = ()
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.launch.supervised", str(run_dir), plan]
    return subprocess.Popen(
        [*SUPERVISE, *options, "--", *launcher, *command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def supervise(run_dir: Path, plan: str, *options: str) -> tuple[int, str, int]:
    """Its exit status, what it printed, and how often the command was started."""
    process = start(run_dir, plan, *options)
    output = process.communicate(timeout=60)[0]
    return process.returncode, output, len((run_dir / "starts").read_text())


def mentioning(text: str) -> list[int]:
    """Pids of processes with this in their command line, but for the supervisor's."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if text.encode() in words and b"supervise" not in words:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize(("word", "status"), [("done", 0), ("bad", 2), ("saved", 75)])
def test_these_ends_are_passed_on(tmp_path: Path, word: str, status: int) -> None:
    assert supervise(tmp_path, word)[::2] == (status, 1)


def test_a_failed_run_is_started_again(tmp_path: Path) -> None:
    status, output, starts = supervise(tmp_path, "7,killed,done")
    assert (status, starts) == (0, 3), output
    assert "the first failure: rank 0 failed after 7\n    T\n    E: x\n" in output
    assert "the command ended with status 137" in output


def test_ranks_say_more_than_their_launcher(tmp_path: Path) -> None:
    """torchrun ends with 1 whatever its workers' statuses are."""
    assert supervise(tmp_path, "lie")[::2] == (75, 1)


def test_a_launcher_that_forgets_a_failure_is_not_believed(tmp_path: Path) -> None:
    """DeepSpeed's runner ends with 0 where its launcher was killed."""
    process = start(tmp_path, "killed,done", launcher=["sh", "-c", '"$@"; exit 0', "sh"])
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert "restart 1 of 10" in output


def test_a_crash_loop_ends(tmp_path: Path) -> None:
    status, output, starts = supervise(tmp_path, "5,9,9,8")
    assert (status, starts) == (1, 4), output
    assert "error: gave up: it failed 3 times in a row at step 9" in output


def test_progress_is_no_crash_loop_but_there_is_a_limit(tmp_path: Path) -> None:
    status, output, starts = supervise(tmp_path, "1,2,3,4,5", "--max-restarts", "3")
    assert (status, starts) == (1, 4), output
    assert "error: gave up: it was started again 3 times" in output


def test_no_orphan_is_left(tmp_path: Path) -> None:
    status, output, _ = supervise(tmp_path, "orphan,done")
    assert status == 0, output
    assert mentioning(str(tmp_path)) == []


@pytest.mark.parametrize("launcher", [[], ["sh", "-c", '"$@"; exit 1', "sh"]], ids=["none", "sh"])
def test_signals_reach_the_ranks(tmp_path: Path, launcher: list[str]) -> None:
    process = start(tmp_path, "wait", launcher=launcher)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75


def test_a_supervisor_that_is_killed_leaves_no_rank(tmp_path: Path) -> None:
    process = start(tmp_path, "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    assert len(mentioning(str(tmp_path))) == 1
    process.kill()
    deadline = time.monotonic() + 20
    while mentioning(str(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_signal_between_two_starts_ends_it(tmp_path: Path) -> None:
    process = start(tmp_path, "1", "--same-step", "9")
    assert process.stdout is not None
    while "restart 3" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)  # in a pause of four seconds
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert len((tmp_path / "starts").read_text()) == 3


class Patient:
    """A command that ends at the second signal, which comes while the first is passed on."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.looks = 0

    def poll(self) -> int | None:
        self.looks += 1
        if self.looks == 1:
            signal.raise_signal(signal.SIGTERM)
        return 75 if len(self.told) == 2 or self.looks > 20 else None

    def stop(self, number: int) -> None:
        self.told.append(number)
        if number == signal.SIGTERM:
            signal.raise_signal(signal.SIGUSR1)

    def end(self) -> End:
        return End(75, -1, "")


def test_a_signal_while_another_is_passed_on_is_passed_on_too() -> None:
    command = Patient()
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        assert Supervisor(lambda: command, Limits()).run() == 75
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert command.told == [signal.SIGTERM, signal.SIGUSR1]


def test_shared_memory_that_nobody_uses_is_removed(tmp_path: Path) -> None:
    before = leftovers.shared_memory()
    ours = [Path("/dev/shm") / f"{name}_{os.getpid()}_test" for name in ("torch", "other")]
    used = Path("/dev/shm") / f"torch_{os.getpid()}_used"
    try:
        for path in ours:
            path.write_bytes(b"x")
        with used.open("w"):
            assert leftovers.remove_shared_memory(before) == [ours[0].name]
        assert not ours[0].exists()
        assert used.exists()
        assert ours[1].exists(), "nothing of anybody else's"
    finally:
        for path in (*ours, used):
            path.unlink(missing_ok=True)


def test_a_descriptor_that_is_closed_meanwhile_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = leftovers.shared_memory()
    used = Path("/dev/shm") / f"torch_{os.getpid()}_later"
    real = Path.readlink

    def readlink(link: Path) -> Path:
        if link == Path(f"/proc/{os.getpid()}/fd/0"):  # listed before that of the segment
            raise FileNotFoundError
        return real(link)

    monkeypatch.setattr(Path, "readlink", readlink)
    try:
        with used.open("w"):
            assert used.name not in leftovers.remove_shared_memory(before)
    finally:
        used.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "options",
    [("--same-step", "0"), ("--max-restarts", "-1"), ("--grace", "nan"), ("--grace", "x")],
)
def test_limits_that_limit_nothing_are_refused(tmp_path: Path, options: tuple[str, str]) -> None:
    done = subprocess.run(
        [*SUPERVISE, *options, "--", "true"], cwd=ROOT, env=environment(), capture_output=True
    )
    assert done.returncode == 2
    assert f"argument {options[0]}".encode() in done.stderr
