"""A rank that hangs is found, named and ended; one that works, or waits for one, is left alone."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime import hang
from tests.processes import start_ranks
from tests.runtime.watchdog_worker import TIMEOUT_S

VICTIM = 1


class Outcome(NamedTuple):
    statuses: list[int]
    output: str
    seconds: float  # from the fault to the end of the last rank
    health: Path


def run(tmp_path: Path, fault: str, ranks: int = 2) -> Outcome:
    arguments = ["-m", "tests.runtime.watchdog_worker", str(tmp_path), fault, str(VICTIM)]
    processes = start_ranks(arguments, ranks)
    output = "".join(process.communicate(timeout=120)[0] for process in processes)
    ended = time.time()
    began = re.search(r"fault ([\d.]+)", output)
    seconds = ended - float(began[1]) if began else 0.0
    return Outcome([p.returncode for p in processes], output, seconds, tmp_path / "health")


def failure(health: Path) -> dict:
    (path,) = health.glob("failure_*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("fault", "reason", "innermost"),
    [
        ("stopped", "stopped: state T", "in _stop"),
        ("gil", "another rank waits in phase 'agree'", "in _hold_the_gil"),
        ("worker", "its worker process", "in get"),
    ],
)
def test_a_hang_is_found_and_named(tmp_path: Path, fault: str, reason: str, innermost: str) -> None:
    done = run(tmp_path, fault)
    assert done.statuses == [-signal.SIGKILL, -signal.SIGKILL]
    assert done.output.count("error: ") == 1
    assert re.search(
        rf"error: rank 1 made no progress for \d+ s in phase 'data' .*{reason}", done.output
    )
    assert done.seconds <= 3 * TIMEOUT_S, "not the 60 s of a start"
    first, second = sorted(done.health.glob("stacks_*.txt"))
    assert "sum_over_ranks" in first.read_text()
    assert innermost in second.read_text()
    assert "watchdog_worker.py" in second.read_text()
    assert failure(done.health)["kind"] == "hang"
    assert reason in failure(done.health)["what"]


def test_a_hang_is_found_within_a_fifth_more_than_its_timeout(tmp_path: Path) -> None:
    """In the least of three runs: a busy machine adds to each."""
    took = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        took.append(run(tmp_path / str(number), "stopped").seconds)
        if took[-1] <= 1.2 * TIMEOUT_S + 1.0:  # processes also need a moment to end
            return
    pytest.fail(f"{took} s")


def test_a_rank_that_works_is_waited_for(tmp_path: Path) -> None:
    done = run(tmp_path, "slow save")
    assert done.statuses == [0, 0], done.output
    assert not list(done.health.glob("failure_*"))


def test_a_run_that_was_stopped_as_a_whole_goes_on(tmp_path: Path) -> None:
    """As by Ctrl-Z: the watchers stand still as well, and must not count that time."""
    arguments = ["-m", "tests.runtime.watchdog_worker", str(tmp_path), "pause", "0"]
    (rank,) = start_ranks(arguments)
    assert rank.stdout is not None
    assert rank.stdout.readline() == "pausing\n"
    everybody = [rank.pid, *(child.pid for child in hang.children(rank.pid))]
    assert len(everybody) == 2
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.3 * TIMEOUT_S)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    output = rank.communicate(timeout=60)[0]
    assert rank.returncode == 0, output


def test_the_first_failure_is_what_the_others_report(tmp_path: Path) -> None:
    done = run(tmp_path, "exception")
    assert done.statuses == [1, 1]
    assert "KeyError: 'no such key'" in failure(done.health)["traceback"]
    assert "error: rank 0 cannot go on: rank 1 failed: KeyError" in done.output
    assert done.output.count("Traceback") == 1
    assert done.seconds < 10


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "killed")
    assert done.statuses == [1, -signal.SIGKILL]
    assert "rank 1 ended suddenly in phase 'data' at step 8" in done.output
    assert done.seconds < 10


def test_a_rank_that_ignores_a_failure_is_ended(tmp_path: Path) -> None:
    """As one that waits in a GPU's queue for a rank that has gone."""
    done = run(tmp_path, "killed while the other sleeps")
    assert done.statuses == [-signal.SIGKILL, -signal.SIGKILL]
    assert "error: rank 0 is ended, since rank 1 ended suddenly" in done.output
    assert done.seconds < 10


def test_watchers_and_workers_end_with_their_rank(tmp_path: Path) -> None:
    arguments = ["-m", "tests.runtime.watchdog_worker", str(tmp_path), "worker", "0"]
    (rank,) = start_ranks(arguments)
    assert rank.stdout is not None
    rank.stdout.readline()
    deadline = time.monotonic() + 30
    while not (tmp_path / "health" / "rank_00000.json").exists():  # its watcher looks by now
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while len(children := hang.children(rank.pid)) < 2:  # the watcher and a worker
        assert time.monotonic() < deadline, children
        time.sleep(0.05)
    time.sleep(1)  # the watcher has seen the worker
    rank.kill()
    rank.wait()
    deadline = time.monotonic() + 5
    while alive := [c for c in children if (now := hang.process(c.pid)) and now.state != "Z"]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def record(rank: int, **values) -> dict:
    standard = {"rank": rank, "host": "here", "phase": "step", "step": 7, "silent_s": 9.6}
    evidence = {"state": "S", "in_collective": True, "worker": None}
    return {**standard, **evidence, **values}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({2: {"state": "T"}, 1: {"phase": "data"}}, "rank 2 made no progress for 10 s"),
        ({1: {"phase": "data"}}, "rank 1 made no progress for 10 s in phase 'data' at step 7"),
        ({1: {"step": 6}}, "rank 1 .* at step 6 .another rank waits in phase 'step' at step 7"),
        ({1: {"phase": "save"}, 2: {"phase": "evaluate"}}, "rank 2 .*'evaluate'"),
        ({0: {"in_collective": False}}, "rank 0 .*the other ranks wait in a collective"),
        ({1: {"worker": "its worker process 77 is dead"}}, "rank 1 .*worker process 77 is dead"),
        ({}, "ranks 0, 1, 2 .*no rank stands out"),
    ],
)
def test_the_verdict(changed: dict, says: str) -> None:
    records = {rank: record(rank, **changed.get(rank, {})) for rank in range(3)}
    assert re.match(says, hang.verdict(records, records))


def test_a_machine_that_is_gone_is_named() -> None:
    beats = {rank: record(rank, host=f"node{rank}") for rank in range(3)}
    records = {rank: beats[rank] for rank in (0, 2)}
    assert re.match("rank 1 on node1 .*is its machine there", hang.verdict(records, beats))


def test_a_process_without_a_handler_is_not_asked() -> None:
    with subprocess.Popen(["sleep", "30"]) as sleeper:
        assert not hang.catches(sleeper.pid, signal.SIGUSR2)
        sleeper.kill()
