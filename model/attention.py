"""Self-attention with grouped heads, and its key/value cache."""

from collections.abc import Callable
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import buckets, flex
from model.config import ModelConfig
from model.dot_product import attend
from model.families import DROPS_ATTENTION_ONLY
from model.layers import HeadNorm, Linear
from model.rotary import Rotary, rotate
from model.visibility import Visibility

Parts = tuple[Tensor, Tensor, Tensor]  # queries, keys, values


class KVCache:
    """Keys and values of the tokens seen so far, in tensors allocated once.

    One instance serves one generation: `length` grows by T with each forward pass of (B, T) tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (config.n_layers, batch_size, config.n_kv_heads, max_len, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.max_len = max_len
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, Hkv, T, hd) of one layer; return all (B, Hkv, length + T, hd)."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Attention(nn.Module):
    """Multi-head self-attention with grouped key/value heads and one packed QKV matrix."""

    fused: Callable[..., Any] | None = None  # set by Transformer.set_kernels

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.window = config.window_of(layer)
        self.dropout = config.dropout
        drops_residual = config.family not in DROPS_ATTENTION_ONLY
        self.residual_dropout = config.dropout if drops_residual else 0.0
        d, width = config.d_model, config.n_heads * config.head_dim
        # Rows: queries of all heads, then keys, then values. One tensor, because DeepSpeed's hooks
        # cost time per tensor.
        splits = (width, *(config.n_kv_heads * config.head_dim,) * 2)
        self.qkv = Linear(
            config, d, sum(splits), bias=config.bias, role="hidden", row_splits=splits
        )
        if config.qk_norm:
            self.q_norm = HeadNorm(config.head_dim, config.norm_eps)
            self.k_norm = HeadNorm(config.head_dim, config.norm_eps)
        self.normalises_qk, self.norm_eps = config.qk_norm, config.norm_eps
        self.output = Linear(config, width, d, bias=config.bias, role="residual", row_splits=(d,))

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None,
        visibility: Visibility,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Map (B, T, d_model) to (B, T, d_model)."""
        batch_size, seq_len, _ = x.shape
        packed = self.qkv(x).view(batch_size, seq_len, -1, self.head_dim)  # (B, T, H+2·Hkv, hd)
        q, k, v = self._split(packed, rotary)
        y = self._attend(q, k, v, visibility, cache).reshape(batch_size, seq_len, -1)
        out: Tensor = self.output(y)  # (B, T, H·hd) → (B, T, d)
        return F.dropout(out, self.residual_dropout, self.training)

    def _split(self, packed: Tensor, rotary: Rotary | None) -> Parts:
        """Return q (B, T, H, hd), k and v (B, T, Hkv, hd); q and k normalised and turned."""
        if self.fused is not None and rotary is not None:
            return self._split_fused(self.fused, packed, rotary)
        sizes = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        q, k, v = packed.split_with_sizes(sizes, dim=2)
        if self.normalises_qk:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return q, k, v

    def _split_fused(self, fused: Callable[..., Parts], packed: Tensor, rotary: Rotary) -> Parts:
        heads = {"n_heads": self.n_heads, "n_kv_heads": self.n_kv_heads}
        fused = partial(fused, rotary=rotary, eps=self.norm_eps, **heads)
        if not self.normalises_qk:
            return fused(packed, gains=())

        def inside_q_norm(packed: Tensor, q_gain: Tensor) -> Any:
            return self.k_norm(packed, lambda packed, gain: fused(packed, gains=(q_gain, gain)))

        parts: Parts = self.q_norm(packed, inside_q_norm)
        return parts

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, cache: KVCache | None
    ) -> Tensor:
        """Mix the values: q (B, T, H, hd), k and v (B, T, Hkv, hd) to (B, T, H, hd)."""
        dropout = self.dropout if self.training else 0.0
        if visibility.buckets is not None:
            return buckets.attend(
                q.flatten(0, 1),
                k.flatten(0, 1),
                v.flatten(0, 1),
                visibility.buckets,
                causal=visibility.causal,
                local=self.window is not None,
                dropout=dropout,
            )
        if visibility.cu_seqlens is not None:
            return self._attend_varlen(q, k, v, visibility)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, hd)
        if visibility.flex is not None:
            masks = visibility.flex
            tiles = masks.everywhere if self.window is None else masks.local
            assert tiles is not None  # made for each kind of layer that there is
            return flex.attend(q, k, v, tiles).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        mask = visibility.mask_of(self.window)
        y = attend(q, k, v, mask=mask, causal=visibility.causal, dropout=dropout)
        return y.transpose(1, 2)

    def _attend_varlen(self, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility) -> Tensor:
        """The same on a GPU, by the kernel that takes the documents' boundaries."""
        from torch.nn.attention.varlen import varlen_attn

        half = None if self.window is None else self.window // 2
        if visibility.causal:
            window = (-1 if self.window is None else self.window - 1, 0)
        else:
            window = (-1, -1) if half is None else (half, half)
        groups = self.n_heads // self.n_kv_heads
        if groups > 1:
            k, v = (t.repeat_interleave(groups, dim=2) for t in (k, v))
        bounds, longest = visibility.cu_seqlens, q.shape[1]
        assert bounds is not None
        q, k, v = (t.flatten(0, 1).contiguous() for t in (q, k, v))  # (B·T, H, hd)
        y = varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=window)
        assert isinstance(y, Tensor)
        return y


def can_attend_varlen(x: Tensor, config: ModelConfig, *, training: bool) -> bool:
    """Whether torch's variable-length kernel computes this model's attention on x's device."""
    if x.device.type != "cuda" or x.dtype not in (torch.float16, torch.bfloat16):
        return False
    if config.head_dim % 8 or config.head_dim > 256 or (training and config.dropout > 0):
        return False
    return _has_varlen()


@cache
def _has_varlen() -> bool:
    """Whether this torch has the kernel with windows, which its first versions lacked."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in signature(varlen_attn).parameters
