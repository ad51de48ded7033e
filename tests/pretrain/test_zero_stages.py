"""Pretraining under ZeRO-3, where no rank ever holds the model whole, against ZeRO-1."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import run

Write = Callable[..., Path]


def train(path: Path, *overrides: str) -> tuple[int, str]:
    return run(["-m", "pretrain", str(path), *overrides], 2)


def records(run_dir: Path, key: str) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {r["step"]: r[key] for r in map(json.loads, lines) if key in r}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stage_3_trains_and_resumes_as_stage_1(
    write_config: Write, tmp_path: Path, precision: str
) -> None:
    """From the same first weights; and its second half is the one of the run without a break."""
    found = {}
    for name, stage, stops in (("one", 1, [8]), ("three", 3, [8]), ("again", 3, [4, 8])):
        run_dir = tmp_path / name
        path = write_config(
            run__dir=str(run_dir), precision=precision, parallel__zero_stage=stage, steps=8
        )
        for stop in stops:
            # Constant: the other schedules depend on the number of steps.
            status, output = train(path, f"steps={stop}", "schedule.kind=constant")
            assert status == 0, output
        found[name] = records(run_dir, "loss"), records(run_dir, "update_ratio")
    assert found["again"] == found["three"]
    for ours, plain in zip(found["three"], found["one"], strict=True):
        assert list(ours) == list(range(1, 9))
        assert ours == pytest.approx(plain, rel=1e-5 if precision == "fp32" else 5e-3)
    # Adam moves a weight by the learning rate, 1e-2, at the most; most of ‖w‖ is the norms'.
    assert all(0.001 < ratio < 0.1 for ratio in found["one"][1].values())


def test_stage_3_refuses_a_checkpoint_of_another_architecture(
    write_config: Write, tmp_path: Path
) -> None:
    path = write_config(parallel__zero_stage=3, steps=4)
    assert train(path)[0] == 0
    status, output = train(path, "steps=6", "model.d_ff=48")
    assert status == 2, output
    assert "of another architecture (model.d_ff: " in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_run_goes_on_under_every_layout(write_config: Write, tmp_path: Path) -> None:
    """Hierarchical partitioning, parameters on the host, one rank: as one run of ZeRO-1."""
    plain = write_config(run__dir=str(tmp_path / "plain"), steps=8, model__dropout=0.0)
    assert train(plain, "schedule.kind=constant")[0] == 0
    path = write_config(run__dir=str(tmp_path / "wide"), steps=8, model__dropout=0.0)
    hpz = ["parallel.sharding=hpz", "parallel.shard_ranks=2"]
    for last, ranks, *keys in (
        (4, 2, "parallel.zero_stage=3", *hpz),
        (6, 2, "parallel.zero_stage=3", "parallel.offload=all"),
        (8, 1, "parallel.zero_stage=2", "parallel.offload=optimizer"),
    ):
        words = ["-m", "pretrain", str(path), f"steps={last}", "schedule.kind=constant", *keys]
        status, output = run(words, ranks)
        assert status == 0, output
    for key in ("loss", "update_ratio"):
        found = records(tmp_path / "wide", key)
        assert list(found) == list(range(1, 9))
        assert found == pytest.approx(records(tmp_path / "plain", key), rel=1e-5)


def test_layouts_that_do_not_go_together_are_refused(write_config: Write) -> None:
    path = write_config(parallel__zero_stage=3, parallel__sharding="hpz", parallel__shard_ranks=4)
    status, output = train(path)
    assert status == 2, output
    assert "parallel.shard_ranks: 2 ranks do not split into groups of 4" in output
    assert "Traceback" not in output
