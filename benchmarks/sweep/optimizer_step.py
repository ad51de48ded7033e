"""Ways to step the optimizer over ZeRO's flat partition: unscale, clip, AdamW, and 16-bit weights.

Four passes as DeepSpeed takes them, with torch's AdamW or with its own; the same in one pass by the
compiler; torch's AdamW with its own unscaling; and one pass of a Triton kernel
(`optimizer_step_triton`), which is no part of the model: it would be merged if it were measured to
be faster than the compiler's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.operations import NotHereError
from runtime.one_pass import update


class AdamW(NamedTuple):
    """The optimizer's constants, and the norm that gradients are clipped to."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_norm: float = 1.0


class Factors(NamedTuple):
    """What changes from step to step, each a scalar in fp32 on the device."""

    unscale: Tensor  # times the gradient
    rate: Tensor  # lr ÷ the first moment's bias correction
    correction: Tensor  # √ of the second moment's
    kept: Tensor  # of the weights by their decay


class Partition:
    """One rank's share of weights, moments and gradients, flat as ZeRO-1 and 2 hold them."""

    def __init__(self, weights: Tensor, low: torch.dtype, settings: AdamW) -> None:
        self.settings, self.steps = settings, 0
        self.weights, self.low = weights, weights.to(low)  # (n,) each
        self.first, self.second = torch.zeros_like(weights), torch.zeros_like(weights)
        self.gradient = torch.randn_like(weights)
        # Of the scaled gradient. Small enough not to be clipped, so that a gradient which is
        # multiplied in place, step after step, does not vanish.
        self.norm = torch.full((), 0.5, device=weights.device)
        self.loss_scale = 1.0

    def combined_scale(self) -> Tensor:
        """What the gradient is divided by, as DeepSpeed's unscale_and_clip_grads has it."""
        clip = (self.norm / self.loss_scale + 1e-6) / self.settings.max_norm
        return clip.clamp(min=1.0) * self.loss_scale

    def factors(self) -> Factors:
        """Those of the next step."""
        self.steps += 1
        lr, (beta1, beta2) = self.settings.lr, self.settings.betas
        filled = partial(torch.full, (), device=self.weights.device)
        return Factors(
            1.0 / self.combined_scale(),
            filled(lr / (1 - beta1**self.steps)),
            filled((1 - beta2**self.steps) ** 0.5),
            filled(1 - lr * self.settings.weight_decay),
        )


def stepper(way: str, part: Partition) -> Callable[[], None]:
    """A function that takes a step, of one way. Raises NotHereError, or ValueError for no way."""
    if way in ("eager", "torch"):
        return by_optimizer(part, torch_adamw(part), unscales_itself=way == "torch")
    if way == "compiled":
        return in_one_pass(part, torch.compile(update, dynamic=False))
    if way == "ours":
        return _by_triton(part)
    if way == "DeepSpeed FusedAdam":
        if part.weights.device.type != "cuda":
            raise NotHereError("runs on a GPU only")
        return by_optimizer(part, deepspeed_adamw(part))
    ways = "eager, torch, compiled, ours, DeepSpeed FusedAdam"
    raise ValueError(f"way: got {way!r}, expected one of {ways}")


def in_one_pass(part: Partition, function: Callable[..., None]) -> Callable[[], None]:
    """Steps by `runtime.one_pass.update`, or by what a compiler made of it."""
    tensors = (part.weights, part.first, part.second, part.gradient, part.low)
    betas, eps = part.settings.betas, part.settings.eps

    def step() -> None:
        with torch.no_grad():
            function(*tensors, torch.stack(part.factors()), betas=betas, eps=eps)

    return step


def torch_adamw(part: Partition) -> Any:
    """Torch's fused AdamW of the partition."""
    lr, betas, eps, decay, _ = part.settings
    weights = [part.weights]
    return torch.optim.AdamW(weights, lr=lr, betas=betas, eps=eps, weight_decay=decay, fused=True)


def deepspeed_adamw(part: Partition) -> Any:
    """DeepSpeed's, whose extension is built when first used. Raises NotHereError."""
    lr, betas, eps, decay, _ = part.settings
    try:
        from deepspeed.ops.adam import FusedAdam

        return FusedAdam([part.weights], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    except Exception as error:  # of many kinds: no nvcc, another CUDA, no ninja, a failed build
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotHereError(f"DeepSpeed cannot build its extension here: {reason}") from error


def by_optimizer(
    part: Partition, optimizer: Any, *, unscales_itself: bool = False
) -> Callable[[], None]:
    """Steps by an optimizer between passes that unscale, clip and round."""
    part.weights.grad = part.gradient
    never = torch.zeros((), device=part.weights.device)

    def step() -> None:
        scale = part.combined_scale()
        if unscales_itself:
            # Where torch.amp leaves them. The unscaled gradient is written back.
            optimizer.grad_scale, optimizer.found_inf = scale, never
        else:
            part.gradient.mul_(1.0 / scale)
        optimizer.step()
        part.low.copy_(part.weights)
        state = optimizer.state[part.weights]
        part.first, part.second = state["exp_avg"], state["exp_avg_sq"]

    return step


def _by_triton(part: Partition) -> Callable[[], None]:
    if part.weights.device.type != "cuda":
        raise NotHereError("needs Triton and a GPU")
    try:
        from benchmarks.sweep.optimizer_step_triton import one_pass_
    except ImportError as error:
        raise NotHereError("needs Triton and a GPU") from error
    return lambda: one_pass_(part, part.factors())
