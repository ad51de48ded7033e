"""P3, P4, P5, P7: ranks that are told to stop, hang, fail, or were started with other things.

The ranks run as under a launcher, which would only see their exit statuses.
"""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from runtime import hang
from runtime.checkpoint import list_checkpoints, verify
from runtime.records import read_metrics
from runtime.signals import STOPS
from tests.faults.harness import Run, until
from tests.faults.runs import Runs
from tests.faults.sockets import is_loopback, listeners
from tests.processes import free_port

TIMEOUT_S = 5.0
START_TIMEOUT_S = 60
HEALTH = {"health__hang_timeout_s": TIMEOUT_S, "health__start_timeout_s": START_TIMEOUT_S}
# Where nothing hangs: a slow disk or a busy machine must not look so.
PATIENT = {**HEALTH, "health__hang_timeout_s": 60}
PREEMPTED = 75
INTERRUPTED = 130
NOTICED_S = 10.0  # by the table of targets, P5 and P7


def failure(run_dir: Path) -> dict[str, Any]:
    (path,) = (run_dir / "health").glob("failure_*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def last_beat(run_dir: Path, rank: int) -> float | None:
    """When the rank was heard of last, once it has completed a step."""
    path = run_dir / "health" / f"rank_{rank:05d}.json"
    if not path.exists() or not json.loads(path.read_text())["is_tight"]:
        return None
    return path.stat().st_mtime


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("SIGSTOP", "stopped: state T"),
        # gloo's thread needs no GIL: the other rank may still get past the step's last collective.
        ("hold_gil", "the other ranks wait in a collective|another rank waits in phase '.*' at .*"),
    ],
)
def test_p4_a_rank_that_hangs(runs: Runs, action: str, reason: str) -> None:
    config = runs.config("hang", steps=1000, checkpoint__every_steps=0, **HEALTH)
    fault = {"kind": "step", "do": action, "step": 6, "rank": 1}
    run = runs.start(config, faults=[fault])
    statuses = run.wait()
    ended = time.time()
    health = runs.path("hang") / "health"
    assert statuses == [-signal.SIGKILL, -signal.SIGKILL], run.output()
    beats = [last_beat(runs.path("hang"), rank) for rank in (0, 1)]
    assert all(beats)
    line = rf"error: rank 1 made no progress for \d+ s in phase 'step' at step 5 \(({reason})\)"
    assert re.search(line, run.output()), run.output()
    # The timeout of steps has counted, not that of a start; a busy machine adds to it.
    assert failure(runs.path("hang"))["time"] - _last_metrics(runs.path("hang")) < (
        START_TIMEOUT_S / 2
    )
    silent = [json.loads(path.read_text())["silent_s"] for path in health.glob("hang_*.json")]
    assert TIMEOUT_S < max(silent) < START_TIMEOUT_S / 2
    assert ended - failure(runs.path("hang"))["time"] < 3
    texts = [path.read_text() for path in sorted(health.glob("stacks_*.txt"))]
    assert len(texts) == 2
    assert "train_step" in texts[0]
    assert "in strike" in texts[1]


def _last_metrics(run_dir: Path) -> float:
    """When the last step was written down, just before the one that hangs."""
    return (run_dir / "metrics.jsonl").stat().st_mtime


def test_p4_a_loader_worker_that_is_stopped(runs: Runs) -> None:
    """One that dies is known at once, by its socket; one that stands still is a hang."""
    config = runs.config("worker", steps=100_000, data__workers=1, **HEALTH)
    run = runs.start(config)
    until(lambda: last_beat(runs.path("worker"), 1), "the first step")
    worker = _data_worker(run[1].pid)
    signal.pidfd_send_signal(_pidfd(worker), signal.SIGSTOP)
    stopped = time.time()
    assert run.wait() == [-signal.SIGKILL, -signal.SIGKILL]
    assert time.time() - stopped < START_TIMEOUT_S / 2
    said = failure(runs.path("worker"))["what"]
    assert said.startswith("rank 1 made no progress")
    assert f"its worker process {worker} is stopped" in said
    # Its new parent may leave it unburied.
    until(
        lambda: (found := hang.process(worker)) is None or found.state == "Z",
        "the end of the worker",
        10,
    )


def test_p4_a_loader_worker_that_dies(runs: Runs) -> None:
    run = runs.start(runs.config("dead", steps=100_000, data__workers=1, **PATIENT))
    until(lambda: last_beat(runs.path("dead"), 1), "the first step")
    signal.pidfd_send_signal(_pidfd(_data_worker(run[1].pid)), signal.SIGKILL)
    began = time.monotonic()
    assert run.wait() == [1, 1]
    assert time.monotonic() - began < NOTICED_S
    assert "rank 1 failed: " in failure(runs.path("dead"))["what"]
    assert "data worker 0" in failure(runs.path("dead"))["what"]


def _data_worker(pid: int) -> int:
    found = [c.pid for c in hang.children(pid) if b"spawn_main" in _command(c.pid)]
    assert len(found) == 1
    return found[0]


def _command(pid: int) -> bytes:
    return (Path("/proc") / str(pid) / "cmdline").read_bytes()


def _pidfd(pid: int) -> int:
    return os.pidfd_open(pid)


def test_p5_an_exception_on_one_rank(runs: Runs) -> None:
    config = runs.config("raise", **PATIENT)
    run = runs.start(config, faults=[{"kind": "step", "do": "raise", "step": 3, "rank": 1}])
    until(lambda: run[1].has_ended(), "the end of the rank that fails")
    began = time.monotonic()
    assert run.wait() == [1, 1]
    assert time.monotonic() - began < NOTICED_S
    found = failure(runs.path("raise"))
    assert found["what"].startswith("rank 1 failed: ")
    assert "InjectedError: injected" in found["traceback"]
    assert "error: rank 0 cannot go on: rank 1 failed:" in run[0].output()
    assert "Traceback" not in run[0].output()


@pytest.mark.parametrize("difference", ["config", "data"])
def test_p7_ranks_that_were_started_with_different_things(
    runs: Runs, tmp_path: Path, difference: str
) -> None:
    config = runs.config("same", **PATIENT)
    other = tmp_path / "other.yaml"
    if difference == "config":
        other.write_text(config.read_text().replace("lr: 0.01", "lr: 0.02"))
        expected = "optim.lr: 0.02 instead of 0.01"
    else:  # from which the number of batches follows
        changed = tmp_path / "data"
        shutil.copytree(runs.corpus, changed)
        manifest = changed / "manifest.json"
        manifest.write_text(manifest.read_text() + "\n")
        other.write_text(config.read_text().replace(str(runs.corpus), str(changed)))
        expected = "manifest.json"
    port = str(free_port())
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": port}
    run = Run()
    for rank, path in enumerate((config, other)):
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        run += runs.server.start([path], **shared, **mine)
    began = time.monotonic()
    assert run.wait() == [2, 2], run.output()
    assert time.monotonic() - began < NOTICED_S + 5, "starting included"
    assert "error: rank 1 was started with something else than rank 0" in run[0].output()
    assert expected in run[0].output()
    assert not runs.path("same").exists()


def stop_at(runs: Runs, name: str, moment: float | str, number: int) -> tuple[Run, Path]:
    """Start a run, signal both ranks at a moment after the start, or when something is there."""
    config = runs.config(
        name, steps=100_000, checkpoint__every_steps=5, evaluate__every_steps=5, **PATIENT
    )
    run = runs.start(config)
    if isinstance(moment, float):
        time.sleep(moment)
    else:
        until(lambda: list(runs.path(name).glob(moment)), moment)
    for process in run:
        process.send(number)
    return run, runs.path(name)


def check_stopped(run: Run, run_dir: Path) -> None:
    """All ranks left with 75, and what was saved is whole and of the last step."""
    statuses = run.wait(60)
    if not run_dir.exists():  # a process that has only just begun may know no signals yet
        early = {INTERRUPTED, *(-number for number in STOPS)}
        assert set(statuses) <= {PREEMPTED, *early}, run.output()
        return
    assert statuses == [PREEMPTED, PREEMPTED], run.output()
    found = list_checkpoints(run_dir / "checkpoints")
    records = [r for r in read_metrics(run_dir / "metrics.jsonl") if "loss" in r]
    if records:
        assert found[-1].step == records[-1]["step"], run.output()
    assert all(verify(info.path) == [] for info in found)
    assert not list((run_dir / "health").glob("failure_*"))


MOMENTS = [
    (0.0, signal.SIGTERM),
    (0.15, signal.SIGUSR1),
    (0.4, signal.SIGINT),
    ("metrics.jsonl", signal.SIGUSR1),
    ("checkpoints/step_*", signal.SIGTERM),
    ("checkpoints/.tmp*", signal.SIGTERM),
]


@pytest.mark.parametrize(("moment", "number"), MOMENTS)
def test_p3_a_signal_at_a_moment(runs: Runs, moment: float | str, number: int) -> None:
    check_stopped(*stop_at(runs, "stopped", moment, number))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(50))
def test_p3_a_signal_at_a_random_moment(runs: Runs, seed: int) -> None:
    draw = random.Random(seed)
    number = draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    check_stopped(*stop_at(runs, "stopped", draw.uniform(0, 3), number))


def test_p3_a_second_signal_ends_at_once_and_leaves_what_was_saved(runs: Runs) -> None:
    """While a step takes for ever."""
    config = runs.config("twice", steps=1000, checkpoint__every_steps=2)
    slow = {"kind": "slow", "seconds": 600, "first": 4}
    run = runs.start(config, faults=[slow])
    until(lambda: list(runs.path("twice").glob("checkpoints/step_*2")), "a save")
    until(lambda: len(read_metrics(runs.path("twice") / "metrics.jsonl")) >= 3, "the third step")

    def again() -> list[bool]:
        for process in run:
            process.send(signal.SIGTERM)
        time.sleep(0.1)
        return [process.has_ended() for process in run]

    assert again() == [False, False], "the first one waits for the step"
    # A second one counts some time after the first was heard, which a busy machine may put off.
    until(lambda: all(again()), "the end of both, in the middle of the step", 60)
    assert run.wait() == [PREEMPTED, PREEMPTED]
    (found,) = list_checkpoints(runs.path("twice") / "checkpoints")
    assert verify(found.path) == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_x7_no_listener_beyond_loopback(runs: Runs, ranks: int) -> None:
    run = runs.start(runs.config("ports", steps=100_000), ranks=ranks)
    until(lambda: len(read_metrics(runs.path("ports") / "metrics.jsonl")) > 1, "the second step")
    found = [address for process in run for address in listeners(process.pid)]
    assert all(is_loopback(address) for address in found), found
    assert (ranks > 1) <= bool(found), "ranks listen to one another"
    assert runs.path("ports").stat().st_mode & 0o777 == 0o700
    run.kill()
