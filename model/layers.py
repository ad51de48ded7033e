"""Linear maps, embeddings, norms and MLPs."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.config import ModelConfig
from model.init import Role, draw, initial_std, is_truncated


class Linear(nn.Linear):
    """A linear map whose weights start random, as its role asks, and whose bias starts at zero.

    row_splits: of a block's map, the rows of each matrix in its weight (they sum to d_out); of the
    heads' maps none.
    """

    float8: Callable[[Tensor], Tensor] | None = None  # set by model.float8, for training

    def __init__(
        self,
        config: ModelConfig,
        d_in: int,
        d_out: int,
        *,
        bias: bool,
        role: Role,
        row_splits: tuple[int, ...] = (),
    ) -> None:
        # Before the constructor, which calls reset_parameters. Drawing the weights right there, and
        # not in a pass over the finished model, keeps construction correct where each module is
        # partitioned as soon as it exists (deepspeed.zero.Init).
        self.std = initial_std(config, role)
        self.truncated = is_truncated(config)
        self.width_ratio = config.width_ratio
        self.row_splits = row_splits
        self.used_rows = config.vocab_size if role == "output" else d_out
        super().__init__(d_in, d_out, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weight anew and zero the bias."""
        _draw_rows(self.weight, self.used_rows, self.std, truncated=self.truncated)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d_in) to (…, d_out)."""
        if self.float8 is not None and self.training:
            return self.float8(x)
        return super().forward(x)


class Embedding(nn.Embedding):
    """A table of random vectors; rows from `used_rows` on only fill it up and stay zero."""

    def __init__(self, config: ModelConfig, rows: int, *, used_rows: int | None = None) -> None:
        self.std = initial_std(config, "embedding")
        self.truncated = is_truncated(config)
        self.used_rows = rows if used_rows is None else used_rows
        super().__init__(rows, config.d_model)

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        _draw_rows(self.weight, self.used_rows, self.std, truncated=self.truncated)


@torch.no_grad()
def _draw_rows(weight: Tensor, used_rows: int, std: float, *, truncated: bool) -> None:
    """Draw the rows in use and zero the others, which take no number from the generator."""
    draw(weight[:used_rows], std, truncated=truncated)
    weight[used_rows:].zero_()


class _Rms(nn.Module):
    """x / rms(x) · weight over the last dimension (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def reset_parameters(self) -> None:
        """Set the gain to one."""
        nn.init.ones_(self.weight)

    def normed(self, x: Tensor) -> Tensor:
        """Normalise (…, d) to (…, d); the mean square is taken in fp32."""
        is_plain = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        # In 16 bit alone: in fp32 its rounding would be another one than that of transformers.
        is_low = x.dtype in (torch.bfloat16, torch.float16) and x.dtype == self.weight.dtype
        if is_plain and is_low and x.device.type == "cpu":
            return _rms_norm_on_cpu(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class RMSNorm(_Rms):
    """RMS norm of the residual stream, which can add to it first."""

    fused: Callable[..., Any] | None = None  # set by Transformer.set_kernels

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """Normalise (…, d) to (…, d); with a residual their sum, which is returned as well."""
        if self.fused is not None:
            return self.fused(x, residual, self.weight, None, self.eps, False)
        total = x if residual is None else residual + x
        normed = self.normed(total)
        return normed if residual is None else (normed, total)


class HeadNorm(_Rms):
    """RMS norm of each query head, or of each key head.

    ZeRO-3 has a parameter whole only while its own module runs, so a kernel that needs the gains of
    both norms runs inside both: each is given what to do with its gain.
    """

    def forward(self, x: Tensor, then: Callable[[Tensor, Tensor], Any] | None = None) -> Any:
        """Normalise (…, hd) to (…, hd), or return then(x, gain)."""
        return self.normed(x) if then is None else then(x, self.weight)


class LayerNorm(nn.LayerNorm):
    """Layer norm (Ba et al. 2016) that can add a residual first, as RMSNorm here."""

    fused: Callable[..., Any] | None = None  # set by Transformer.set_kernels

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """Normalise (…, d) to (…, d); with a residual their sum, which is returned as well."""
        if self.fused is not None:
            return self.fused(x, residual, self.weight, self.bias, self.eps, True)
        total = x if residual is None else residual + x
        normed = super().forward(total)
        return normed if residual is None else (normed, total)


class _RmsNormOnCpu(torch.autograd.Function):
    """In 16 bit. Torch has no kernel for the CPU: its dozen operations take twice as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # Converted first: a product of two dtypes is not computed in vectors.
        wide = x.to(torch.float32, copy=True)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = wide.mul_(inverse).to(x.dtype)
        ctx.save_for_backward(normed, inverse, weight)
        scaled: Tensor = normed * weight
        return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, inverse, weight = ctx.saved_tensors
        of_gains = (gradient * normed).flatten(0, -2)
        # The part along x itself changes nothing: its length is divided out.
        along = (of_gains @ weight).view(inverse.shape).div_(-len(weight))
        of_x = (gradient * weight).addcmul_(normed, along).float().mul_(inverse)
        return of_x.to(gradient.dtype), of_gains.sum(0), None


_rms_norm_on_cpu: Callable[..., Tensor] = _RmsNormOnCpu.apply


def make_norm(config: ModelConfig) -> nn.Module:
    """Build the norm that the config asks for."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, eps=config.norm_eps, bias=config.norm_bias)


def _gelu_tanh(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        # What is compiled for a CPU has a slow tanh; (1 + tanh u) / 2 is the sigmoid of 2u.
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    """The square of the positive part (So et al. 2021, "Primer")."""
    return F.relu(x).square()


# Of each kind of MLP; for the gated ones, of the gate.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": _relu2,
    "swiglu": F.silu,
    "geglu": F.gelu,
}


class PlainMlp(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, d_ff, bias = config.d_model, config.d_ff, config.mlp_bias
        self.activation = ACTIVATIONS[config.mlp]
        self.up = Linear(config, d, d_ff, bias=bias, role="hidden", row_splits=(d_ff,))
        self.down = Linear(config, d_ff, d, bias=bias, role="residual", row_splits=(d,))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d_model) to (…, d_model)."""
        down: Tensor = self.down(self.activation(self.up(x)))
        return down


class GatedMlp(nn.Module):
    """down(activation(gate(x)) · up(x)), with gate and up in one matrix (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, d_ff, bias = config.d_model, config.d_ff, config.mlp_bias
        self.activation = ACTIVATIONS[config.mlp]
        splits = (d_ff, d_ff)
        self.gate_up = Linear(config, d, 2 * d_ff, bias=bias, role="hidden", row_splits=splits)
        self.down = Linear(config, d_ff, d, bias=bias, role="residual", row_splits=(d,))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d_model) to (…, d_model)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        down: Tensor = self.down(self.activation(gate) * up)
        return down


def make_mlp(config: ModelConfig) -> nn.Module:
    """Build the MLP that the config asks for."""
    return GatedMlp(config) if config.is_gated else PlainMlp(config)
