"""Rotary positions (Su et al. 2021) and their stretchings for longer texts."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ModelConfig, RopeScaling


class Rotary(NamedTuple):
    """Angles of rotary positions as cos and sin, each (B or 1, T, 1, head_dim/2), fp32."""

    cos: Tensor
    sin: Tensor


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
    return Rotary(angle.cos() * scale, angle.sin() * scale)  # (B, T, 1, head_dim/2)


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
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat(
        (
            first * rotary.cos - second * rotary.sin,
            second * rotary.cos + first * rotary.sin,
        ),
        dim=-1,
    )
    return turned.to(x.dtype)
