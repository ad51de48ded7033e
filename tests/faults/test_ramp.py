"""Whole runs whose batch grows."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from runtime.records import read_metrics
from tests.faults.runs import Runs, last_digest, losses

RAMP = [{"until_step": 3, "global_batch_size": 4}, {"until_step": 7, "global_batch_size": 8}]
KEYS: dict[str, Any] = {
    "batch": {"global_batch_size": 16, "micro_batch_size": 2, "ramp": RAMP},
    "model__dropout": 0.0,
}
SIZES = [4] * 3 + [8] * 4 + [16] * 5  # of twelve steps


def seen(run_dir: Path) -> list[int]:
    records = read_metrics(run_dir / "metrics.jsonl")
    return [r["tokens_seen"] for r in records if "loss" in r]


def rows(path: Path) -> dict[int, list[str]]:
    found = defaultdict(list)
    for line in path.read_text().splitlines():
        step, _, digest = line.split()
        found[int(step)].append(digest)
    return {step: sorted(digests) for step, digests in found.items()}


@pytest.mark.parametrize("stage", [1, 3])
def test_it_is_the_same_run_broken_in_the_midst_of_the_ramp(runs: Runs, stage: int) -> None:
    keys = {**KEYS, "parallel__zero_stage": stage, "checkpoint__every_steps": 1}
    output = runs.finish(runs.config("calm", **keys))
    positions = 16 * sum(SIZES)
    assert f"12 steps of 64 to 256 tokens = {positions:,}" in output
    assert seen(runs.path("calm")) == [16 * sum(SIZES[: n + 1]) for n in range(12)]
    broken = runs.config("broken", **keys, checkpoint__background=False)
    for step in (2, 4, 2):  # of each start's own
        fault = {"kind": "step", "rank": 1, "step": step, "do": "SIGKILL"}
        run = runs.start(broken, faults=[fault])
        assert run.wait_then_kill(patience_s=20)[1] == -9, run.output()
    assert "resumed from" in runs.finish(broken)
    assert losses(runs.path("broken")) == losses(runs.path("calm"))
    assert last_digest(runs.checkpoints("broken"), 12) == last_digest(runs.checkpoints("calm"), 12)


def test_ranks_change_neither_the_data_nor_the_loss(runs: Runs, tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        name, path = f"on{ranks}", tmp_path / f"rows{ranks}.txt"
        fault = {"kind": "record_rows", "path": str(path)}
        runs.finish(runs.config(name, **KEYS), ranks=ranks, faults=[fault])
        assert [len(of_step) for of_step in rows(path).values()] == SIZES
        found.append((rows(path), losses(runs.path(name))))
    (one, one_losses), (two, two_losses) = found
    assert one == two
    assert two_losses == pytest.approx(one_losses, rel=1e-5)


def test_a_budget_of_tokens_counts_what_the_steps_take(runs: Runs) -> None:
    budget = {"steps": None, "tokens": 16 * (sum(SIZES[:9]) + 15)}  # not enough for a tenth step
    runs.finish(runs.config("budget", **KEYS, **budget), ranks=1)
    assert list(losses(runs.path("budget"))) == list(range(1, 10))
    assert seen(runs.path("budget"))[-1] == 16 * sum(SIZES[:9])


def test_bad_steps_on_the_ramp_are_left_out(runs: Runs, tmp_path: Path) -> None:
    """Data steps 4 and 5 go: optimizer steps after the roll-back take the sizes of 6, 7, …"""
    path = tmp_path / "rows.txt"
    runs.finish(runs.config("plain", **KEYS), ranks=1,
                faults=[{"kind": "record_rows", "path": str(path)}])  # fmt: skip
    taken = rows(path)
    poison = {"kind": "poison", "rows": [*taken[5], *taken[6]], "what": "loss nan"}
    keys = {**KEYS, "health__max_skipped_steps": 2, "schedule__kind": "constant"}
    runs.finish(runs.config("bad", **keys), ranks=1, faults=[poison])
    state = json.loads((runs.checkpoints("bad") / "step_00000012/training/state.json").read_text())
    assert state["loader"]["skipped"] == [[4, 6]]
    kept = [*SIZES[:4], SIZES[6], *[16] * 7]
    assert seen(runs.path("bad")) == [16 * sum(kept[: n + 1]) for n in range(12)]
