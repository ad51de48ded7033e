"""Scaled dot-product attention of heads: torch's, but for short texts on a CPU that trains."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SHORT = 256  # tokens


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """Mix values by softmax(q·kᵀ / √hd): q (B, H, T, hd), k and v (B, Hkv, S, hd) to (B, H, T, hd).

    mask: (B or 1, 1, T or 1, S) bool, True where a query may look, in place of
    `causal`; each query needs something to look at.
    """
    groups = q.shape[1] // k.shape[1]
    is_short = _is_short_training(q, k, dropout)
    if groups > 1 and (is_short or mask is not None):
        # With a mask, SDPA's fused backends take grouped heads on few devices only; the fallback
        # would materialise all scores, so the heads are repeated instead.
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        groups = 1
    causal = causal and mask is None and q.shape[2] > 1
    if is_short:
        return _short(q, k, v, mask, causal)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=groups > 1
    )


def _is_short_training(q: Tensor, k: Tensor, dropout: float) -> bool:
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or dropout:
        return False
    # The length last: asked for in vain, it would bind an exported model to lengths below it.
    return torch.is_grad_enabled() and q.shape[2] == k.shape[2] <= _SHORT


class _Short(torch.autograd.Function):
    """Torch's kernel forward; backward all scores at once, in matrix products.

    On short texts the backward pass of torch's kernel takes two (256 tokens) to five times (128) as
    long. Scores are recomputed, and are rounded to bf16 like those of attention that is written
    out: gradients are off by 0.4 % of their norm where torch's are by 0.3, and by 1 % where torch's
    are by 0.4 with scores four times as large.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: Any) -> Any:
        # Rows of heads, as the products want them. What is packed beside q, k and v can then be let
        # go of, and the compiler does not keep both.
        ctx.save_for_backward(*(x.flatten(0, 1).contiguous() for x in (q, k, v)), mask)
        ctx.causal = causal
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors  # (B·H, T, hd)
        shape, scale = gradient.shape, 1 / math.sqrt(q.shape[-1])
        if ctx.causal:
            mask = torch.ones(shape[2], shape[2], dtype=torch.bool).tril()
        hidden = torch.zeros((), dtype=q.dtype)
        if mask is not None:
            hidden = hidden.expand(mask.shape).masked_fill(~mask, -math.inf)
        hidden = hidden.expand(*shape[:3], shape[2]).flatten(0, 1)
        gradient = gradient.flatten(0, 1)
        p = torch.softmax(torch.baddbmm(hidden, q, k.mT, alpha=scale), -1)
        d_v = torch.bmm(p.mT, gradient)
        d_scores = torch._softmax_backward_data(torch.bmm(gradient, v.mT), p, -1, p.dtype)
        d_q, d_k = torch.bmm(d_scores, k) * scale, torch.bmm(d_scores.mT, q) * scale
        return d_q.view(shape), d_k.view(shape), d_v.view(shape), None, None


_short: Callable[..., Tensor] = _Short.apply
