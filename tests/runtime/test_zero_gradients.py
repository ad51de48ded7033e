"""The norm of gradients in one pass: as in fp64, and DeepSpeed's mark where it is not finite."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtime import zero_gradients
from runtime.dist import Ranks


class Optimizer:
    """The methods of DeepSpeed's that can be replaced."""

    def __init__(self, *, offloads: bool, overlaps: bool, sums_apart: bool) -> None:
        self.cpu_offload, self.overlap_comm = offloads, overlaps
        self.use_grad_accum_attribute = sums_apart

    def get_grad_norm_direct(self) -> None: ...

    def _check_overflow(self) -> None: ...

    def average_tensor(self) -> None: ...

    def copy_grads_in_partition(self) -> None: ...

    def get_gradient_for_reduction(self) -> None: ...


def attached(
    stage: int = 1,
    world_size: int = 1,
    *,
    offloads: bool = False,
    overlaps: bool = False,
    sums_apart: bool = False,
    kind: type = Optimizer,
) -> Any:
    optimizer = kind(offloads=offloads, overlaps=overlaps, sums_apart=sums_apart)
    ranks = Ranks(0, 0, world_size, torch.device("cpu"))
    zero_gradients.attach(SimpleNamespace(optimizer=optimizer), stage, ranks)
    return optimizer


def replaced(optimizer: Any) -> set[str]:
    return set(vars(optimizer)) - {"cpu_offload", "overlap_comm", "use_grad_accum_attribute"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_norm_is_that_in_double_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(shape).to(dtype) for shape in ((3, 5), (1000, 777), (1,))]
    expected = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    assert float(attached().get_grad_norm_direct(gradients, [])) == pytest.approx(
        expected, rel=1e-5
    )


def test_sums_of_many_numbers_do_not_lose_the_small_ones() -> None:
    gradient = torch.full((20_000_000,), 0.01, dtype=torch.bfloat16)
    expected = float(gradient[0]) * math.sqrt(gradient.numel())
    found = float(attached().get_grad_norm_direct([gradient], []))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_marks_the_norm(value: float) -> None:
    gradients = [torch.zeros(7), torch.zeros(5, dtype=torch.bfloat16)]
    gradients[1][3] = value
    assert float(attached().get_grad_norm_direct(gradients, [])) == -1


def test_a_rank_without_gradients_has_norm_zero() -> None:
    assert float(attached().get_grad_norm_direct([], [])) == 0


def test_other_stages_and_offloading_keep_deepspeeds_own() -> None:
    for optimizer in (attached(0), attached(3), attached(1, offloads=True)):
        assert not replaced(optimizer)


def test_only_a_single_rank_leaves_out_averages_and_copies() -> None:
    own = {"get_grad_norm_direct", "_check_overflow"}
    for stage in (1, 2):
        alone = {*own, "average_tensor", "copy_grads_in_partition"}
        assert replaced(attached(stage, 1)) == alone
    others = attached(2, 1, overlaps=True), attached(1, 1, sums_apart=True)
    for optimizer in (attached(1, 2), attached(2, 2), *others):
        assert replaced(optimizer) == own


def test_gradients_are_joined_in_their_order_and_large_ones_not_copied() -> None:
    sizes = [(3,), (300, 300), (2,), (1,), (70_000,), (40_000,), (50_000,), (5, 1)]
    gradients = [torch.randn(size) for size in sizes]
    found = list(zero_gradients.joined(gradients))
    assert torch.equal(torch.cat(found), torch.cat([g.flatten() for g in gradients]))
    assert [len(flat) for flat in found] == [3, 90_000, 3, 70_000, 90_000, 5]
    assert found[1].data_ptr() == gradients[1].data_ptr()
    assert list(zero_gradients.joined([])) == []


def test_another_deepspeed_keeps_its_own() -> None:
    """One that does not call what is replaced would look for inf and NaN no more."""
    kind = type("Renamed", (), {"__init__": Optimizer.__init__, "average_tensor": None})
    assert not replaced(attached(kind=kind))


def test_what_is_replaced_is_there() -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    assert all(hasattr(DeepSpeedZeroOptimizer, name) for name in zero_gradients._REPLACED)
