"""What each token may look at: causality, sliding windows, padding, packed documents, prefixes."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.bands import reach, rows_of, rule
from model.buckets import Buckets, make_buckets
from model.config import ModelConfig
from model.flex import FlexMasks


class Visibility(NamedTuple):
    """What attention needs to know of a batch; made once per forward pass, for all layers.

    Either `buckets` hold the documents sorted by length, and attention runs on one after the other;
    or `cu_seqlens` bounds them for a kernel that takes them; or `flex` has the tiles that
    FlexAttention computes; or `mask`, and `local_mask` for layers with a sliding window, are
    (B or 1, 1, q_len, kv_len), True where a query may look, None where the layer's own rule (causal
    or everything) is all there is.
    """

    causal: bool
    mask: Tensor | None = None
    local_mask: Tensor | None = None
    buckets: Buckets | None = None
    cu_seqlens: Tensor | None = None
    flex: FlexMasks | None = None

    def mask_of(self, window: int | None) -> Tensor | None:
        """The mask of a layer with this sliding window, or None."""
        return self.mask if window is None else self.local_mask


class Documents(NamedTuple):
    """Packed documents: which one each token is in, and where in it, both (B, T) int64."""

    number: Tensor
    position: Tensor


def document_layout(cu_seqlens: Tensor, batch_size: int, seq_len: int) -> Documents:
    """Say which packed document each token is in, and where in it.

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
    return Documents(document.view(batch_size, seq_len), position.view(batch_size, seq_len))


def by_length(
    config: ModelConfig, cu_seqlens: Tensor, seq_len: int, *, prefix: Tensor | None
) -> Visibility:
    """Attention within documents of similar length at a time: hardly a masked score is computed."""
    bounds = cu_seqlens.tolist()
    ends = sorted({*bounds, *range(seq_len, bounds[-1], seq_len)})  # a row's end ends a document
    flat = None if prefix is None else prefix.flatten()
    return Visibility(config.causal, buckets=make_buckets(ends, config, flat))


def masked(
    config: ModelConfig,
    q_len: int,
    kv_len: int,
    device: torch.device,
    *,
    attention_mask: Tensor | None = None,
    documents: Tensor | None = None,
    prefix: Tensor | None = None,
) -> Visibility:
    """Combine everything into masks; none where the plain rule is enough, for the fast kernels.

    attention_mask: (B, kv_len), 0 for padding. documents: (B, kv_len), a token's document.
    prefix: (B, kv_len) bool, True within a prefix, whose tokens see one another whole.
    """
    known = {"attention_mask": attention_mask, "documents": documents, "prefix": prefix}
    rows = rows_of(known)
    row = torch.arange(1 if rows is None else rows, device=device)[:, None, None]
    query = torch.arange(kv_len - q_len, kv_len, device=device)[None, :, None]
    key = torch.arange(kv_len, device=device)[None, None, :]

    def mask(window: int | None) -> Tensor | None:
        needs_window = window is not None and kv_len > reach(window, causal=config.causal)
        is_plain = not config.causal or q_len in (1, kv_len)  # what a kernel does by itself
        if rows is None and not needs_window and is_plain:
            return None
        return rule(window, causal=config.causal, **known)(row, row, query, key)[:, None]

    windows = {config.window_of(layer) for layer in range(config.n_layers)}
    local = mask(config.sliding_window) if windows - {None} else None
    return Visibility(config.causal, mask(None) if None in windows else None, local)
