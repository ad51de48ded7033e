"""Virtual tokens before a text: as embeddings (prompt), or as keys and values of layers (prefix).

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning"; Li & Liang 2021,
"Prefix-Tuning". Computed as peft computes them, so that its directories mean the same.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.adapters.config import Adapter
from model.attention import Attention, KVCache
from model.heads import IGNORE_INDEX, Model, Output
from model.visibility import Visibility


def attach(net: Model, keys: Adapter) -> None:
    """Give a model its virtual tokens, drawn from torch's global generator."""
    if keys.kind == "prefix":
        _attach_prefix(net, keys.virtual_tokens)
    else:
        _attach_prompt(net, keys.virtual_tokens)


# --- prompt ----------------------------------------------------------------------------------


class PromptedEmbedding(nn.Module):
    """A table of tokens with the virtual ones after its last row."""

    def __init__(self, inner: nn.Embedding, count: int, used_rows: int) -> None:
        super().__init__()
        self.inner = inner
        # Words of the vocabulary: far better to start from than noise (Lester et al., §3.2).
        rows = torch.randint(used_rows, (count,))
        table = inner.weight.detach()[rows].float().clone()
        self.prompt_embeddings = nn.Parameter(table)

    @property
    def weight(self) -> Tensor:
        """The table of the real tokens, which may be the output's matrix too."""
        return self.inner.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Look up (…) ids, (…, d)."""
        rows = self.inner.num_embeddings
        is_virtual = ids >= rows
        found: Tensor = self.inner(ids.masked_fill(is_virtual, 0))
        virtual = F.embedding((ids - rows).clamp(min=0), self.prompt_embeddings)
        return torch.where(is_virtual[..., None], virtual.to(found.dtype), found)


def _attach_prompt(net: Model, count: int) -> None:
    table = net.trunk.token_embedding
    net.trunk.add_module("token_embedding", PromptedEmbedding(table, count, net.config.vocab_size))
    first = table.num_embeddings
    net.register_forward_pre_hook(partial(_lengthen, first=first, count=count), with_kwargs=True)
    net.register_forward_hook(partial(_shorten, count=count), with_kwargs=True)


def _named(positional: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a model's forward pass by name."""
    names = ("input_ids", "attention_mask", "position_ids")
    return {**dict(zip(names, positional, strict=False)), **named}


def _lengthen(
    net: Model, positional: tuple[Any, ...], named: dict[str, Any], *, first: int, count: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put the virtual tokens before every text of the arguments."""
    given = _named(positional, named)
    for name in ("cu_seqlens", "rows", "prefix_mask"):
        if given.get(name) is not None:
            raise ValueError(f"{name}: not there for a model with virtual tokens")
    ids: Tensor = given["input_ids"]
    cache: KVCache | None = given.get("cache")
    if given.get("attention_mask") is not None:
        given["attention_mask"] = F.pad(given["attention_mask"], (count, 0), value=1)
    positions: Tensor | None = given.get("position_ids")
    if positions is not None:
        given["position_ids"] = positions + count
    if cache is not None and cache.length:
        return (), given  # the virtual tokens are in the cache
    if cache is not None:
        _widen(cache, count)
    if positions is not None:
        before = torch.arange(count, device=ids.device).expand(len(positions), -1)
        given["position_ids"] = torch.cat((before, positions + count), 1)
    virtual = torch.arange(first, first + count, device=ids.device).expand(len(ids), -1)
    given["input_ids"] = torch.cat((virtual.to(ids.dtype), ids), 1)
    if given.get("token_type_ids") is not None:
        given["token_type_ids"] = F.pad(given["token_type_ids"], (count, 0))
    if given.get("targets") is not None:
        given["targets"] = F.pad(given["targets"], (count, 0), value=IGNORE_INDEX)
    labels: Tensor | None = given.get("labels")
    if labels is not None and net.head == "span":
        given["labels"] = torch.where(labels < 0, labels, labels + count)
    elif labels is not None and net.head != "sequence":
        given["labels"] = F.pad(labels, (count, 0), value=IGNORE_INDEX)
    return (), given


def _widen(cache: KVCache, count: int) -> None:
    """Make room for the virtual tokens, which who made the cache did not count."""
    cache.max_len += count
    cache.keys, cache.values = (F.pad(t, (0, 0, 0, count)) for t in (cache.keys, cache.values))


def _shorten(
    net: Model, _: tuple[Any, ...], named: dict[str, Any], output: Output, *, count: int
) -> Output:
    """Take the virtual tokens' own logits away."""
    logits, cache = output.logits, named.get("cache")
    if logits is None or net.head == "sequence":
        return output
    if cache is not None and cache.length > logits.shape[1]:
        return output  # not the first pass: there were none in it
    return output._replace(logits=logits[:, count:])


# --- prefix ----------------------------------------------------------------------------------


class Prefix(nn.Module):
    """Keys and values of the virtual tokens: (tokens, layers · 2 · kv heads · head_dim)."""

    def __init__(self, net: Model, count: int) -> None:
        super().__init__()
        shape = net.config
        self.sizes = (count, shape.n_layers, 2, shape.n_kv_heads, shape.head_dim)
        width = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim
        self.prompt_embeddings = nn.Parameter(torch.randn(count, width))

    def forward(self, layer: int) -> tuple[Tensor, Tensor]:
        """Find keys and values (1, kv heads, tokens, head_dim) of a layer."""
        keys, values = self.prompt_embeddings.view(self.sizes)[:, layer].unbind(1)
        return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]


def _attach_prefix(net: Model, count: int) -> None:
    prefix = Prefix(net, count)
    net.trunk.prefix = prefix
    net.trunk.unpads = net.trunk.splits_documents = False  # plain masks, which are easily widened
    positions = net.trunk._positions

    def moved(*arguments: Any) -> Tensor:
        found: Tensor = positions(*arguments) + count
        return found

    net.trunk.__dict__["_positions"] = moved
    net.register_forward_pre_hook(partial(_move, count=count), with_kwargs=True)
    for block in net.trunk.blocks:
        assert isinstance(block.attention, Attention)
        block.attention.__dict__["_attend"] = _Widened(prefix, block.attention)


def _move(
    _: Model, positional: tuple[Any, ...], named: dict[str, Any], *, count: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Count given positions from after the prefix."""
    given = _named(positional, named)
    if given.get("position_ids") is not None:
        given["position_ids"] = given["position_ids"] + count
    return (), given


class _Widened:
    """`Attention._attend` of one layer, where every query also sees the prefix."""

    def __init__(self, prefix: Prefix, attention: Attention) -> None:
        self.prefix, self.attention = prefix, attention

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, cache: KVCache | None
    ) -> Tensor:
        """Mix the values: q (B, T, H, hd), k and v (B, T, Hkv, hd) to (B, T, H, hd)."""
        attention = self.attention
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, hd)
        if cache is not None:
            k, v = cache.append(attention.layer, k, v)
        queries, length = q.shape[2], k.shape[2]
        mask = visibility.mask_of(attention.window)
        if mask is None:
            everything = torch.ones(queries, length, dtype=torch.bool, device=q.device)
            mask = everything.tril(length - queries)[None, None]
        own = (t.to(k.dtype).expand(len(k), -1, -1, -1) for t in self.prefix(attention.layer))
        first_k, first_v = own
        k, v = torch.cat((first_k, k), 2), torch.cat((first_v, v), 2)
        groups = attention.n_heads // attention.n_kv_heads
        if groups > 1:
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=F.pad(mask, (self.prefix.sizes[0], 0), value=True),
            dropout_p=attention.dropout if attention.training else 0.0,
        )
        return y.transpose(1, 2)
