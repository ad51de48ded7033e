"""Rotary positions (Su et al. 2021) and their stretchings for longer texts."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.config import ModelConfig, RopeScaling


class Rotary(NamedTuple):
    """What turns pairs (i, i + hd/2) by their positions' angles, each (B or 1, T, 1, hd), fp32."""

    cos: Tensor  # of both of a pair
    sin: Tensor  # negative for the first of a pair

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> "Rotary":
        """Both of a pair from cos and sin of their angle, each (B or 1, T, 1, hd/2)."""
        return cls(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))

    def halves(self) -> tuple[Tensor, Tensor]:
        """Return what `of` was given."""
        half = self.cos.shape[-1] // 2
        return self.cos[..., :half], self.sin[..., half:]


def rotary_table(position_ids: Tensor, config: ModelConfig, *, local: bool = False) -> Rotary:
    """Compute the angles of (B or 1, T) positions; `local`: for layers with a sliding window.

    Computed in each forward pass from the integers: a stored table would be rounded by
    `net.bfloat16()`, left empty by meta construction and gathered by ZeRO-3, and this is one pass
    over T·head_dim/2 numbers.
    """
    theta = (config.rope_theta_local if local else None) or config.rope_theta
    frequency, scale = frequencies(
        config.head_dim, theta, config.rope_scaling, device=position_ids.device
    )
    angle = position_ids[..., None, None].float() * frequency
    return Rotary.of(angle.cos() * scale, angle.sin() * scale)  # from (B, T, 1, head_dim/2)


def frequencies(
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    *,
    device: torch.device | None = None,
) -> tuple[Tensor, float]:
    """Turns per token of each pair, in radians, (head_dim/2,) fp32; and the factor on cos, sin."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequency = 1.0 / theta**exponent
    if scaling is None:
        return frequency, 1.0
    if scaling.kind == "linear":
        return frequency / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(frequency, scaling), 1.0
    default = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
    return _yarn(frequency, theta, scaling), scaling.attention_factor or default


def _llama3(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow pairs are divided by the factor, fast ones kept, those between blended (Llama 3.1)."""
    assert scaling.original_max_seq_len is not None
    turns = scaling.original_max_seq_len * frequency / (2 * math.pi)  # in the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / scaling.factor)


def _yarn(frequency: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """As llama3, but blended linearly over the pairs' numbers (Peng et al. 2023, §3.2)."""
    assert scaling.original_max_seq_len is not None
    context: int = scaling.original_max_seq_len
    pairs = frequency.numel()

    def pair_that_turns(times: float) -> float:
        return pairs * math.log(context / (times * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), 2 * pairs - 1)
    number = torch.arange(pairs, dtype=torch.float32, device=frequency.device)
    divided = ((number - low) / (high - low or 0.001)).clamp(0, 1)
    return frequency * (1 - divided + divided / scaling.factor)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn each pair (i, i + hd/2) of x (B, T, H, hd) by its position's angle, in fp32."""
    turn: Callable[..., Tensor] = _turn
    # Eager autograd would take each operation apart; compilers fuse the plain form.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        turn = _Turn.apply
    return turn(x.float(), *rotary).to(x.dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        # The same as rolling, which is compiled into element by element reads.
        halves = x.view(*x.shape[:-1], 2, -1)
        return x * cos + halves.flip(-2).view_as(x) * sin
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


class _Turn(torch.autograd.Function):
    """The gradient of a rotation is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, -sin), None, None
