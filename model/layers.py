"""Linear maps, embeddings, norms, rotary positions and MLPs."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.init import residual_std


class Linear(nn.Linear):
    """A linear map whose weights start as N(0, std²) and whose bias starts at zero."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool, std: float) -> None:
        # Before the constructor, which calls reset_parameters. Drawing the weights right there, and
        # not in a pass over the finished model, keeps construction correct where each module is
        # partitioned as soon as it exists (deepspeed.zero.Init).
        self.std = std
        super().__init__(d_in, d_out, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weight anew and zero the bias."""
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A table of vectors that start as N(0, std²)."""

    def __init__(self, rows: int, d_model: int, *, std: float) -> None:
        self.std = std
        super().__init__(rows, d_model)

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        nn.init.normal_(self.weight, std=self.std)


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension (Zhang & Sennrich 2019)."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def reset_parameters(self) -> None:
        """Set the gain to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (…, d) to (…, d); the mean square is taken in fp32."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """Build the norm that the config asks for."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps)


class Rotary(NamedTuple):
    """Angles of rotary positions as cos and sin, each (B or 1, T, 1, head_dim/2), fp32."""

    cos: Tensor
    sin: Tensor


def rotary_table(position_ids: Tensor, head_dim: int, theta: float) -> Rotary:
    """Compute the angles of each position (Su et al. 2021); (B or 1, T) positions.

    Computed in each forward pass from the integers: a stored table would be rounded by
    `net.bfloat16()`, left empty by meta construction and gathered by ZeRO-3, and this is one pass
    over T·head_dim/2 numbers.
    """
    exponent = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32)
    frequency = 1.0 / theta ** (exponent / head_dim)  # (head_dim/2,)
    angle = position_ids[..., None, None].float() * frequency  # (B, T, 1, head_dim/2)
    return Rotary(angle.cos(), angle.sin())


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


class GeluMlp(nn.Module):
    """down(gelu_tanh(up(x))), as in GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.d_model, config.d_ff, bias=config.bias, std=config.init_std)
        self.down = Linear(config.d_ff, config.d_model, bias=config.bias, std=residual_std(config))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d_model) to (…, d_model)."""
        down: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return down


class SwigluMlp(nn.Module):
    """down(silu(gate(x)) · up(x)), with gate and up in one matrix (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = Linear(
            config.d_model, 2 * config.d_ff, bias=config.bias, std=config.init_std
        )
        self.down = Linear(config.d_ff, config.d_model, bias=config.bias, std=residual_std(config))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d_model) to (…, d_model)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        down: Tensor = self.down(F.silu(gate) * up)
        return down


def make_mlp(config: ModelConfig) -> nn.Module:
    """Build the MLP that the config asks for."""
    return SwigluMlp(config) if config.mlp == "swiglu" else GeluMlp(config)
