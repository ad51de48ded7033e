"""AdamW's update under ZeRO-1 and -2 in one pass over memory, where the compiler can fuse it.

DeepSpeed 0.19.8 converts the gradients to fp32, multiplies them by what clips them, has AdamW read
them with weights and moments, and rounds the weights: four passes, and a copy of all gradients.
One pass reads gradients as they are, and writes weights, moments and rounded weights.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runtime.dist import Ranks
from runtime.zero_gradients import joined

_REPLACED = ("scaled_global_norm", "update_lp_params", "_update_model_bit16_weights")


def attach(engine: Any, stage: int, ranks: Ranks) -> None:
    """Take the place of DeepSpeed's step, of this engine alone, where it can be one pass.

    That is plain AdamW without a loss scale, in the device's memory; all else steps as before.
    """
    zero = engine.optimizer
    if stage not in (1, 2) or zero.cpu_offload or zero.dtype == torch.float16:
        return
    is_known = all(hasattr(type(zero), name) for name in _REPLACED)
    if is_known and type(zero.optimizer) is torch.optim.AdamW:
        zero.step = _Step(zero, ranks)


class _Step:
    """What a call of ZeRO's `step` does, in its order."""

    def __init__(self, zero: Any, ranks: Ranks) -> None:
        self._zero, self._ranks = zero, ranks
        self._update: Callable[..., None] = torch.compile(update, dynamic=True)
        self._is_compiled = False

    @torch.no_grad()
    def __call__(self, closure: Any = None) -> None:
        assert closure is None
        zero = self._zero
        zero.micro_step_id = -1  # as before the first micro-batch
        norm = zero.scaled_global_norm()
        zero.overflow = bool(norm == -1)  # the mark of a norm that is not finite
        zero._global_grad_norm = math.inf if zero.overflow else norm
        is_skipped = zero.overflow or bool(zero.optimizer.found_inf)
        for index, group in enumerate(zero.optimizer.param_groups):
            state = self._state(index)
            if not is_skipped:
                self._step(index, group, state, norm)
            self._release(index)
        zero._lazy_init_hp_params_optimizer_state()
        if self._ranks.world_size > 1:
            zero.update_lp_params()  # every rank's weights to the others
        for index in range(len(zero.bit16_groups)):
            zero._update_model_bit16_weights(index)

    def _state(self, index: int) -> dict[str, Tensor]:
        """The moments, under the names that torch's AdamW gives them."""
        weight = self._zero.single_partition_of_fp32_groups[index]
        state: dict[str, Tensor] = self._zero.optimizer.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        return state

    def _step(
        self, index: int, group: dict[str, Any], state: dict[str, Tensor], norm: Tensor
    ) -> None:
        zero, (beta1, beta2) = self._zero, group["betas"]
        state["step"] += 1
        # A count of steps on a GPU is never read back, for which the host would have to wait.
        steps = state["step"].double()
        clip = torch.ones_like(norm)
        if zero.clip_grad:
            clip = ((norm + 1e-6) / zero.clip_grad).clamp(min=1)
        scalars = (
            1 / clip,
            group["lr"] / (1 - beta1**steps),
            (1 - beta2**steps).sqrt(),
            torch.full_like(steps, 1 - group["lr"] * group["weight_decay"]),
        )
        weight = zero.single_partition_of_fp32_groups[index]
        factors = torch.stack([s.to(weight.device, torch.float32) for s in scalars])
        rounded = zero.parallel_partitioned_bit16_groups[index][self._ranks.rank]
        written = (weight, state["exp_avg"], state["exp_avg_sq"], rounded)
        start = 0
        for gradient in joined(zero.averaged_gradients[index]):
            place = [tensor.narrow(0, start, len(gradient)) for tensor in written]
            if not self._is_compiled and gradient.storage_offset():
                # What is compiled for the start of some memory serves for all of it, and not the
                # other way round.
                gradient = gradient.clone()
            # Not as views, whose bases would be compiled for as well.
            tensors = [tensor.data for tensor in (*place[:3], gradient, place[3])]
            self._update(*tensors, factors, betas=group["betas"], eps=group["eps"])
            self._is_compiled = True
            start += len(gradient)
        assert start == len(weight), "gradients do not fill the partition"

    def _release(self, index: int) -> None:
        zero = self._zero
        zero.free_grad_in_param_list(zero.params_not_in_partition[index])
        zero.free_grad_in_param_list(zero.params_in_partition[index])
        zero._release_preflattened_grad_buffers(index)
        zero.averaged_gradients[index] = zero.all_grad_tensors[index] = None


def update(
    weight: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    rounded: Tensor,
    factors: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of AdamW (Loshchilov & Hutter 2019), each element by itself.

    weight, first, second: (n,) fp32, and rounded: (n,), the weight in 16 bit: all written over.
    gradient: (n,). factors: (4,) fp32: what the gradient is multiplied by; lr ÷ the first moment's
    bias correction; √ of the second's; what decay leaves of a weight.
    """
    scale, rate, correction, kept = factors.unbind()
    scaled = gradient.to(weight.dtype) * scale
    first.lerp_(scaled, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(scaled, scaled, value=1 - betas[1])
    weight.mul_(kept).sub_(rate * first / (second.sqrt() / correction + eps))
    rounded.copy_(weight)
