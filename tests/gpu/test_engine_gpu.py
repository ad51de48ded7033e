"""The engine, a run and its resume on a GPU; skipped, visibly, where there is none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.corpus import prepare_corpus
from tests.processes import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DEVICE = "cuda"


def test_the_engine_trains_as_plain_torch_does() -> None:
    status, output = run(["-m", "runtime.selftest"])
    assert status == 0, output
    assert "FAIL" not in output
    assert "left out" not in output
    assert output.count(" fp16 ") == 3 * 3 * 2  # optimizers, stages, accumulation


def test_in_fp16_what_overflows_is_skipped_and_lowers_the_loss_scale() -> None:
    status, output = run(["tests/runtime/fp16_worker.py"])
    assert status == 0, output
    assert output.split().count("learns") == 3  # stages


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_bf16_run_learns_and_resumes(tmp_path: Path, stage: int) -> None:
    data = prepare_corpus(tmp_path / "corpus")
    arguments = ["-m", "pretrain", str(tmp_path / "run.yaml")]
    (tmp_path / "run.yaml").write_text(
        f"run: {{dir: {tmp_path}/run, device: cuda}}\nmodel: {{preset: llama-tiny}}\n"
        f"data: {{train: {data}, seq_len: 64}}\nbatch: {{global_batch_size: 16}}\nsteps: 20\n"
        f"parallel: {{zero_stage: {stage}}}\ncheckpoint: {{every_steps: 10}}\n"
    )
    status, output = run([*arguments, "steps=10"])
    assert status == 0, output
    status, output = run(arguments)
    assert status == 0, output
    assert "resumed from" in output


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.timeout(1100)
@pytest.mark.parametrize("stage", [1, 3])
def test_a_packed_run_is_compiled_once(tmp_path: Path, stage: int) -> None:
    """Whatever documents a batch has; and it learns as one that is not compiled."""
    data, steps = prepare_corpus(tmp_path / "corpus"), 12
    (tmp_path / "run.yaml").write_text(
        f"run: {{dir: {tmp_path}/eager, device: {DEVICE}}}\nmodel: {{preset: llama-tiny}}\n"
        f"data: {{train: {data}, seq_len: 256, packing: best_fit}}\nlog: {{every_steps: 1}}\n"
        f"batch: {{global_batch_size: 8, micro_batch_size: 4}}\nsteps: {steps}\n"
        f"parallel: {{zero_stage: {stage}}}\nevaluate: {{every_steps: 0}}\nprecision: bf16\n"
    )
    losses = {}
    for name in ("eager", "compiled"):
        is_compiled = f"compile={str(name == 'compiled').lower()}"
        arguments = ["-m", "pretrain", str(tmp_path / "run.yaml"), f"run.dir={tmp_path}/{name}"]
        status, output = run([*arguments, is_compiled], timeout=500)
        assert status == 0, output
        if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
            assert "varlen" in output
        found = records(tmp_path / name / "metrics.jsonl")
        losses[name] = [record["loss"] for record in found if "loss" in record]
    assert len(losses["compiled"]) == steps
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-2)
    events = records(tmp_path / "compiled" / "events.jsonl")
    made = [(e["step"], e.get("graphs", 99)) for e in events if e["kind"] == "compile"]
    assert [step for step, _ in made] == [1], made
    assert made[0][1] <= 3, made  # of blocks and loss, and of the update up to ZeRO-2
