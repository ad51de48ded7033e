"""D1: the disk is full, broken, or over quota while a run saves."""

import random
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.faults.harness import STORAGE, ForkServer
from tests.faults.runs import Runs, last_digest, losses, steps_saved

FAILED = 74
ERRORS = ("ENOSPC", "EIO", "EDQUOT")
# As long as a person would wait for another process to make room is too long for a test.
HURRY = {"kind": "value", "name": "runtime.checkpoint.saver.RETRY_PAUSES_S", "value": [0.02] * 3}


def bytes_of(checkpoint: Path) -> int:
    return sum(p.stat().st_size for p in checkpoint.rglob("*") if p.is_file())


def failing_writes(runs: Runs, name: str, error: str, **where: int) -> dict[str, Any]:
    """In the second save."""
    under = str(runs.checkpoints(name) / ".tmp_step_00000008")
    return {"kind": "write", "do": error, "under": under, **where}


def test_errors_that_pass_are_waited_out(runs: Runs) -> None:
    """Twenty runs, an error at a random byte of each: the run goes on, and ends as if none was."""
    chance = random.Random(0)
    runs.finish(runs.config("calm", steps=10))
    calm, digest = losses(runs.path("calm")), last_digest(runs.checkpoints("calm"), 10)
    saved = bytes_of(runs.checkpoints("calm") / "step_00000008")
    for number in range(20):
        name, error, times = f"run{number}", ERRORS[number % 3], chance.randint(1, 3)
        where = {"rank": chance.randrange(2), "after": chance.randrange(saved // 3), "times": times}
        fault = failing_writes(runs, name, error, **where)
        output = runs.finish(runs.config(name, steps=10), faults=[HURRY, fault])
        assert output.count("not saved yet") == times, where
        assert losses(runs.path(name)) == calm, where
        assert steps_saved(runs.checkpoints(name)) == [8, 10], where
        assert last_digest(runs.checkpoints(name), 10) == digest, where


@pytest.mark.parametrize("error", ERRORS)
def test_errors_that_stay_end_the_run(runs: Runs, error: str) -> None:
    """After three more attempts, on all ranks, in one line, with the save before intact."""
    for rank in range(2):
        name = f"run{rank}"
        fault = failing_writes(runs, name, error, rank=rank, after=20_000, times=10**6)
        run = runs.start(runs.config(name), faults=[HURRY, fault])
        assert run.wait() == [FAILED] * 2, run.output()
        output = run.output()
        assert output.count("not saved yet") == 3, output
        assert "step 4 is intact" in output
        assert "run the same command again" in output
        assert "Traceback" not in output
        assert steps_saved(runs.checkpoints(name)) == [4]
        assert sorted(p.name for p in runs.checkpoints(name).glob(".*")) == []
        runs.finish(runs.config(name))  # when there is room again


def test_a_limit_on_files_keeps_what_was_saved(server: ForkServer, tmp_path: Path) -> None:
    """Twenty times a file meets RLIMIT_FSIZE, which the kernel enforces, somewhere in a save."""
    chance = random.Random(0)
    for number in range(20):
        root, told = tmp_path / f"root{number}", tmp_path / "told"
        arguments = [root, told, 2, number % 4 // 2]
        assert server.start(arguments, target=STORAGE, ranks=2).wait() == [0, 0]
        sizes = [p.stat().st_size for p in (root / "step_00000002").rglob("*") if p.is_file()]
        limit = chance.randrange(1, max(sizes))
        fault = {"kind": "limit_files", "bytes": limit, "rank": number % 2}
        run = server.start([root, told, 3, 0], target=STORAGE, ranks=2, faults=[HURRY, fault])
        assert run.wait() == [1, 1], run.output()
        assert "step 2 is intact" in run.output() or "could not be saved" in run.output()
        assert steps_saved(root) == [1, 2], limit


@pytest.mark.parametrize(("share", "fits"), [(1.1, False), (1.5, True)])
def test_room_is_looked_for_before_a_save(
    finished: Runs, runs: Runs, share: float, fits: bool
) -> None:
    """A fifth more than a checkpoint's size must be free; nothing is begun without it."""
    size = 0
    for file in (finished.checkpoints("calm") / "step_00000012").rglob("*.safetensors"):
        with safe_open(file, framework="numpy") as opened:
            size += sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
    faults = [HURRY, {"kind": "little_room", "bytes": int(share * size)}]
    run = runs.start(runs.config("run"), faults=faults)
    statuses = run.wait()
    if fits:
        assert statuses == [0, 0], run.output()
        return
    assert statuses == [FAILED] * 2
    assert "GB free" in run.output()
    assert list(runs.checkpoints("run").iterdir()) == []
