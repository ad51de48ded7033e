"""Each way to step the optimizer in the benchmark is AdamW, with clipping and 16-bit weights."""

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from deepspeed.ops.adam import fused_adam
from torch import Tensor

from benchmarks.kernels import line, timed
from benchmarks.operations import OPERATIONS, NotHereError
from benchmarks.sweep.optimizer_step import (
    AdamW,
    Factors,
    Partition,
    by_optimizer,
    deepspeed_adamw,
    in_one_pass,
    stepper,
)
from runtime.one_pass import update
from tests.model.kernels.interpreted.closeness import assert_close
from tests.processes import run

SETTINGS = AdamW(lr=3e-3, eps=1e-4, max_norm=1.5)
SIZE, STEPS = 5003, 3  # no multiple of what a program or a vector takes
NORMS = (6.0, 0.5, 30.0)  # of the scaled gradient: clipped, not clipped, clipped
LOSS_SCALE = 4.0


def steps_of(
    part: Partition, step: Callable[[], None], gradients: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and moments after some steps."""
    part.loss_scale = LOSS_SCALE
    for norm, gradient in zip(NORMS, gradients, strict=True):
        part.norm.fill_(norm)
        part.gradient.copy_(gradient)
        step()
    return part.weights, part.first, part.second


def by_torch(weights: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by torch's plain AdamW in fp64."""
    parameter = weights.double()
    lr, betas, eps, decay, most = SETTINGS
    optimizer = torch.optim.AdamW([parameter], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    for norm, gradient in zip(NORMS, gradients, strict=True):
        over = max(1.0, (norm / LOSS_SCALE + 1e-6) / most)
        parameter.grad = gradient.double() / (LOSS_SCALE * over)
        optimizer.step()
    state = optimizer.state[parameter]
    return parameter, state["exp_avg"], state["exp_avg_sq"]


def check(way: str, make: Callable[[str, Partition], Callable[[], None]], low: torch.dtype) -> None:
    torch.manual_seed(0)
    weights, gradients = 0.02 * torch.randn(SIZE), torch.randn(STEPS, SIZE)
    part = Partition(weights.clone(), low, SETTINGS)
    found = steps_of(part, make(way, part), gradients)
    assert_close(found, by_torch(weights, gradients), 1e-6)
    assert part.low.dtype == low
    assert torch.equal(part.low, part.weights.to(low))
    assert not torch.equal(part.low, weights.to(low))


@pytest.mark.parametrize("way", ["eager", "torch"])
def test_ways_without_a_compiler(way: str) -> None:
    check(way, stepper, torch.bfloat16)


def test_one_pass_without_a_compiler() -> None:
    check("one pass", lambda way, part: in_one_pass(part, update), torch.bfloat16)


def test_a_way_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'one pass', expected one of eager, torch"):
        stepper("one pass", Partition(torch.zeros(8), torch.bfloat16, SETTINGS))


class TestDeepSpeed:
    """Its FusedAdam, whose CUDA extension is built when first used."""

    def test_it_is_left_out_on_a_cpu(self) -> None:
        part = Partition(torch.zeros(8), torch.bfloat16, SETTINGS)
        with pytest.raises(NotHereError, match="runs on a GPU only"):
            stepper("DeepSpeed FusedAdam", part)

    def test_it_is_left_out_where_it_cannot_be_built(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            raise OSError("CUDA_HOME does not exist\nand more")

        monkeypatch.setattr(fused_adam, "FusedAdamBuilder", lambda: SimpleNamespace(load=fail))
        part = Partition(torch.zeros(8), torch.bfloat16, SETTINGS)
        with pytest.raises(NotHereError, match=r"here: CUDA_HOME does not exist$"):
            deepspeed_adamw(part)

    def test_it_is_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        built = SimpleNamespace(multi_tensor_adam=extension)
        builder = SimpleNamespace(load=lambda: built)
        monkeypatch.setattr(fused_adam, "FusedAdamBuilder", lambda: builder)
        check(
            "deepspeed", lambda way, part: by_optimizer(part, deepspeed_adamw(part)), torch.bfloat16
        )


def extension(_: int, __: Tensor, tensors: list[list[Tensor]], *constants: float) -> None:
    """What csrc/adam/multi_tensor_adam.cu of DeepSpeed computes."""
    lr, beta1, beta2, eps, step, is_adamw, corrects_bias, decay = constants
    assert (is_adamw, corrects_bias) == (1, 1)
    for gradient, weight, first, second in zip(*tensors, strict=True):
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second / (1 - beta2**step)).sqrt() + eps
        weight.sub_(lr * (first / (1 - beta1**step) / root + decay * weight))


@pytest.mark.slow
def test_the_compiler_makes_one_kernel() -> None:
    from torch._inductor import metrics

    torch._dynamo.reset()
    metrics.reset()
    check("compiled", stepper, torch.bfloat16)
    assert metrics.generated_kernel_count == 1
    torch._dynamo.reset()


def test_the_triton_kernel_is_left_out_on_a_cpu() -> None:
    with pytest.raises(NotHereError, match="needs Triton and a GPU"):
        OPERATIONS["optimizer_step"].case("ours", {"n": 8}, torch.bfloat16, torch.device("cpu"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
class TestTriton:
    """Its kernel, without a GPU."""

    def test_it_is_the_others_in_the_interpreter(self) -> None:
        code = "from tests.benchmarks.test_optimizer_step import interpreted; interpreted()"
        status, output = run(["-c", code], TRITON_INTERPRET="1")
        assert status == 0, output

    @pytest.mark.parametrize("capability", [80, 90])
    def test_it_fits_a_card(self, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from benchmarks.sweep import optimizer_step_triton
        from tests.model.kernels.ahead_of_time import launches

        monkeypatch.setattr(optimizer_step_triton, "check_device", lambda x: None)
        part = Partition(torch.zeros(4096), torch.bfloat16, SETTINGS)
        factors = Factors(*(torch.zeros(()) for _ in range(4)))
        (kernel,) = launches(lambda: optimizer_step_triton.one_pass_(part, factors), capability)
        assert kernel.spilled == 0
        assert kernel.registers <= 64
        # 8 numbers of a thread: two accesses of 16 bytes in fp32, one in bf16; four scalars.
        assert sorted(kernel.widths("ld")) == [4] * 4 + [16] * 8
        assert kernel.widths("st") == [16] * 7


def interpreted() -> None:
    """Run the kernel on a CPU. The copy is in fp32: the interpreter's bf16 is silently wrong."""
    from benchmarks.sweep.optimizer_step_triton import one_pass_

    check("ours", lambda way, part: lambda: one_pass_(part, part.factors()), torch.float32)


def test_a_step_is_one_time_in_the_table() -> None:
    case = OPERATIONS["optimizer_step"].case(
        "eager", {"n": 100}, torch.bfloat16, torch.device("cpu")
    )
    assert timed(case, torch.device("cpu"), 2, backward=True) > 0
    row = {"op": "optimizer_step", "shape": {"n": 100}, "way": "eager", "both_ms": 2.0}
    more = {"both_min_ms": 1.0, "peak_mb": 0.5, "bytes_moved": 2_960_000, "of_copy": 0.25}
    told = line({**row, **more})
    assert told == "| optimizer_step | n=100 | eager | – | 2.000 | 1.000 | 0.5 | 3.0 | 25 % |"
