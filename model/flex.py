"""FlexAttention: the compiler fuses a rule of sight into a GPU's kernel, which skips hidden tiles.

Dong et al. 2024, arXiv 2412.05496. It drops no attention weights, and takes no cache here. Not
compiled, all scores would be kept, so what is not compiled yet is compiled here.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model.bands import rows_of, rule
from model.config import ModelConfig
from model.dot_product import attend as attend_masked

_ROUNDING = 0.02  # of bf16, relative to a gradient's norm; a wrong mask is off by 0.2 and more


class FlexMasks(NamedTuple):
    """Which tiles of a batch hold something to see, and the rule within them, for all layers."""

    everywhere: BlockMask | None
    local: BlockMask | None  # of layers with a sliding window


@torch.no_grad()
def make_masks(
    config: ModelConfig,
    seq_len: int,
    device: torch.device,
    *,
    attention_mask: Tensor | None,
    documents: Tensor | None,
    prefix: Tensor | None,
) -> FlexMasks:
    """Find the tiles of one forward pass; arguments as of `bands.rule`.

    Compiled, so that no mask of all pairs is ever in memory (as torch advises). The compiler takes
    the rule's tensors as inputs: one graph for all batches, and no wait for the GPU.
    """
    known = {"attention_mask": attention_mask, "documents": documents, "prefix": prefix}
    rows = rows_of(known)

    def mask(window: int | None) -> BlockMask:
        sees = rule(window, causal=config.causal, **known)
        made = _compiled(create_block_mask)(sees, rows, None, seq_len, seq_len, device)
        assert isinstance(made, BlockMask)
        return made

    windows = {config.window_of(layer) for layer in range(config.n_layers)}
    local = mask(config.sliding_window) if windows - {None} else None
    return FlexMasks(mask(None) if None in windows else None, local)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attention under a mask: q (B, H, T, hd), k and v (B, Hkv, T, hd) to (B, H, T, hd)."""
    is_grouped = q.shape[1] != k.shape[1]
    y = _compiled(flex_attention)(q, k, v, block_mask=mask, enable_gqa=is_grouped)
    assert isinstance(y, Tensor)
    return y


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function fused by itself, or by the compiler that is reading this."""
    return function if torch.compiler.is_compiling() else _compiled_alone(function)


@cache
def _compiled_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function)
    return compiled


def problem(device: torch.device, config: ModelConfig, dtype: torch.dtype) -> str | None:
    """Why FlexAttention does not work here for this model, in a line; None where it does."""
    q = torch.linspace(0, 9999, 2 * config.n_heads * 256 * config.head_dim, device=device).sin()
    q = q.view(2, config.n_heads, 256, config.head_dim).to(dtype)
    try:
        found, want = (
            _gradients(attention, q, config.n_kv_heads)
            for attention in (torch.compile(_trial), _plain_trial)
        )
    except Exception as error:  # of whatever part: the compiler, Triton, a shape it cannot take
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    errors = [(a - b).norm() / b.norm() for a, b in zip(found, want, strict=True)]
    return None if max(errors) <= _ROUNDING else "it computes wrong numbers"


def _gradients(attention: Callable[..., Tensor], q: Tensor, kv_heads: int) -> list[Tensor]:
    """What attention over short texts with prefixes makes of fixed numbers, and its gradients."""
    device = q.device
    prefix = torch.arange(256, device=device)[None] < torch.tensor([[150], [50]], device=device)
    q = q.requires_grad_()
    y = attention(q, q[:, :kv_heads], q[:, -kv_heads:], prefix)
    (gradient,) = torch.autograd.grad(y, q, y.detach() + 1)
    return [y.detach().float(), gradient.float()]


def _see_prefix(prefix: Tensor) -> Callable[..., Tensor]:
    return rule(None, causal=True, attention_mask=None, documents=None, prefix=prefix)


def _trial(q: Tensor, k: Tensor, v: Tensor, prefix: Tensor) -> Tensor:
    mask = create_block_mask(_see_prefix(prefix), len(q), None, q.shape[2], q.shape[2], q.device)
    return attend(q, k, v, mask)


def _plain_trial(q: Tensor, k: Tensor, v: Tensor, prefix: Tensor) -> Tensor:
    place = partial(torch.arange, device=q.device)
    row, token = place(len(q))[:, None, None], place(q.shape[2])
    mask = _see_prefix(prefix)(row, row, token[:, None], token)[:, None]
    return attend_masked(q, k, v, mask=mask, causal=True, dropout=0.0)
