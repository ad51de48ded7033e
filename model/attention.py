"""Causal self-attention, its mask and its key/value cache."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.init import residual_std
from model.layers import Linear, Rotary, rotate


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


def document_layout(cu_seqlens: Tensor, batch_size: int, seq_len: int) -> tuple[Tensor, Tensor]:
    """Say which packed document each token is in, and where in it, both (B, T) int64.

    `cu_seqlens` holds the boundaries over the B·T flattened tokens: 0, end of document 1, …, B·T.
    Repeated boundaries are allowed, so that the tensor can have a fixed size. A row's end always
    ends a document too: rows never see one another.
    """
    total = batch_size * seq_len
    # A device tensor is not read back: that would stall the GPU in every step.
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        bounds = cu_seqlens.tolist()
        if bounds[:1] != [0] or bounds[-1:] != [total] or bounds != sorted(bounds):
            raise ValueError(
                f"cu_seqlens: got {str(bounds)[:80]}, expected boundaries that rise from 0 to B·T ="
                f" {total}; count them over the flattened batch"
            )
    token = torch.arange(total, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens.to(torch.int64), token, right=True)
    start = cu_seqlens.to(torch.int64)[document - 1]
    row_start = token - token % seq_len
    position = token - torch.maximum(start, row_start)
    return document.view(batch_size, seq_len), position.view(batch_size, seq_len)


def attention_mask_for(
    q_len: int,
    kv_len: int,
    device: torch.device,
    attention_mask: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor | None:
    """Combine causality, padding (B, kv_len) and packed documents (B, kv_len) into one mask.

    Returns (B or 1, 1, q_len, kv_len), True where a query may look, or None when causality alone
    decides, so that the fast path of SDPA applies.
    """
    if attention_mask is None and documents is None and (q_len in (1, kv_len)):
        return None
    query = torch.arange(kv_len - q_len, kv_len, device=device)[:, None]  # (q_len, 1)
    key = torch.arange(kv_len, device=device)[None, :]  # (1, kv_len)
    allowed = (key <= query)[None, None]  # (1, 1, q_len, kv_len)
    if documents is not None:
        same = documents[:, kv_len - q_len :, None] == documents[:, None, :]
        allowed = allowed & same[:, None]
    if attention_mask is not None:
        # A padding token may see itself: a query with nothing to look at has an undefined softmax,
        # and the NaN it returns on some backends would reach every weight through the gradient.
        visible = attention_mask.to(torch.bool)[:, None, None, :] | (key == query)
        allowed = allowed & visible
    return allowed


class Attention(nn.Module):
    """Multi-head self-attention with grouped key/value heads and one packed QKV matrix."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.dropout = config.dropout
        # Llama's class drops attention weights only.
        self.residual_dropout = config.dropout if config.family == "gpt2" else 0.0
        width = config.n_heads * config.head_dim
        # Rows: queries of all heads, then keys, then values. One tensor, because DeepSpeed's hooks
        # cost time per tensor.
        packed = width + 2 * config.n_kv_heads * config.head_dim
        self.qkv = Linear(config.d_model, packed, bias=config.bias, std=config.init_std)
        self.output = Linear(width, config.d_model, bias=config.bias, std=residual_std(config))

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None,
        mask: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Map (B, T, d_model) to (B, T, d_model); `mask` as from `attention_mask_for`."""
        batch_size, seq_len, _ = x.shape
        packed = self.qkv(x).view(batch_size, seq_len, -1, self.head_dim)  # (B, T, H+2·Hkv, hd)
        q, k, v = packed.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=2)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, hd)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        groups = self.n_heads // self.n_kv_heads
        if groups > 1 and mask is not None:
            # With a mask, SDPA's fused backends take grouped heads on few devices only; the
            # fallback would materialise all scores, so the heads are repeated instead.
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
            groups = 1
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and seq_len > 1,
            enable_gqa=groups > 1,
        )
        y = y.transpose(1, 2).reshape(batch_size, seq_len, -1)  # (B, T, H·hd)
        out: Tensor = self.output(y)
        return F.dropout(out, self.residual_dropout, self.training)
