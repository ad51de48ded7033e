"""The engine, a run and its resume on a GPU; skipped, visibly, where there is none."""

from pathlib import Path

import pytest
import torch

from tests.corpus import prepare_corpus
from tests.processes import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


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
