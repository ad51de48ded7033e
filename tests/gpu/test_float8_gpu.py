"""Real products in 8 bits against their emulation, and a run; skipped where no GPU has them."""

from pathlib import Path

import pytest
import torch

from model import float8, preset
from model.layers import Linear
from tests.corpus import prepare_corpus
from tests.processes import run

pytest.importorskip("torchao")
HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_FP8, reason="needs an NVIDIA GPU of compute capability 8.9 or more"),
]
D_IN, D_OUT = 256, 512


def computed(tokens: int, *, emulate: bool, is_compiled: bool) -> list[torch.Tensor]:
    """Output and gradients of input, weight and bias."""
    torch.manual_seed(0)
    config = preset("llama-tiny")
    module = Linear(config, D_IN, D_OUT, bias=True, role="hidden", row_splits=(D_OUT,))
    module = module.to("cuda", torch.bfloat16)
    float8.use_in(module, emulate=emulate)
    x = torch.randn(tokens, D_IN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(tokens, D_OUT, device="cuda", dtype=torch.bfloat16) / 1000
    y = torch.compile(module.forward)(x) if is_compiled else module(x)
    y.backward(gradient)
    assert x.grad is not None
    assert module.weight.grad is not None
    return [y.detach(), x.grad, module.weight.grad, module.bias.grad]


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("tokens", [128, 21])  # the product over tokens is padded
def test_products_as_emulated(tokens: int, is_compiled: bool) -> None:
    real = computed(tokens, emulate=False, is_compiled=is_compiled)
    for found, wanted in zip(real, computed(tokens, emulate=True, is_compiled=False), strict=True):
        # The sums of the output are rounded to fewer bits on the way, of all by their order.
        assert (found - wanted).float().norm() < 1e-2 * wanted.float().norm()


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_learns_and_resumes(tmp_path: Path, stage: int) -> None:
    data = prepare_corpus(tmp_path / "corpus")
    arguments = ["-m", "pretrain", str(tmp_path / "run.yaml")]
    (tmp_path / "run.yaml").write_text(
        f"run: {{dir: {tmp_path}/run, device: cuda}}\nmodel: {{preset: llama-tiny}}\n"
        f"data: {{train: {data}, seq_len: 64}}\nbatch: {{global_batch_size: 16}}\nsteps: 20\n"
        f"parallel: {{zero_stage: {stage}}}\ncheckpoint: {{every_steps: 10}}\n"
        "precision: fp8\ncompile: true\n"
    )
    status, output = run([*arguments, "steps=10"])
    assert status == 0, output
    assert "linear maps of the blocks in FP8" in output
    status, output = run(arguments)
    assert status == 0, output
    assert "resumed from" in output
