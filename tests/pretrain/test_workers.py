"""Whole runs whose batches are made by worker processes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.records import read_metrics
from tests.processes import run

Write = Callable[..., Path]


@pytest.mark.slow
def test_workers_change_nothing(write_config: Write, tmp_path: Path) -> None:
    """Two ranks, dropout, accumulation; the run with workers goes on from its own checkpoint."""
    losses, weights = [], []
    for name, workers, stretches in (("without", 0, (8,)), ("with", 2, (4, 8))):
        for steps in stretches:
            path = write_config(
                run__dir=str(tmp_path / name), data__workers=workers, schedule__kind="constant"
            )
            status, output = run(["-m", "pretrain", str(path), f"steps={steps}"], 2)
            assert status == 0, output
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        losses.append({r["step"]: r["loss"] for r in records if "loss" in r})
        checkpoint = tmp_path / name / "checkpoints" / "step_00000008"
        weights.append((checkpoint / "model.safetensors").read_bytes())
    assert list(losses[0]) == list(range(1, 9))
    assert losses[0] == losses[1]
    assert weights[0] == weights[1]


def test_a_killed_worker_ends_the_run_with_its_name(write_config: Write, tmp_path: Path) -> None:
    """Killed after the third step, by the run itself."""
    code = (
        "import os, sys, pretrain.session as session\n"
        "from pretrain.__main__ import main\n"
        "real = session.Session.record\n"
        "def record(self, **values):\n"
        "    real(self, **values)\n"
        "    if self.step == 3:\n"
        "        os.kill(self.loader.worker_pids[1], 9)\n"
        "session.Session.record = record\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    status, output = run(["-c", code, str(write_config(data__workers=2))])
    assert status == 1, output
    assert "error: data worker 1 (pid " in output
    assert "was killed by signal 9 (Killed) at data step " in output
    assert "Traceback" not in output
