"""The trunk that every head shares: embeddings, blocks, final norm."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import visibility
from model.attention import Attention, KVCache, can_attend_varlen
from model.config import ModelConfig
from model.families import DROPS_ATTENTION_ONLY
from model.flex import make_masks
from model.kernels import Kernels, load
from model.layers import Embedding, LayerNorm, RMSNorm, make_mlp, make_norm
from model.memory import Recompute
from model.rotary import Rotary, rotary_table
from model.visibility import Documents, Visibility, document_layout


class Context(NamedTuple):
    """What every block needs to know of a batch besides the hidden states."""

    visibility: Visibility
    rotary: Rotary | None
    local_rotary: Rotary | None  # of layers with a sliding window
    cache: KVCache | None


class Block(nn.Module):
    """One layer: attention, then MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.is_post_norm = config.norm_place == "post"
        # Right after the embedding's own norm another one would change next to nothing.
        is_normed = layer == 0 and config.embedding_norm and not self.is_post_norm
        self.attention_norm = nn.Identity() if is_normed else make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config)
        drops_residual = config.family not in DROPS_ATTENTION_ONLY
        self.residual_dropout = config.dropout if drops_residual else 0.0
        self.recompute: Recompute = "none"

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (B, T, d_model) to (B, T, d_model)."""
        if self.is_post_norm:
            x = self.attention_norm(self._run("attention", self._attention, x, context), x)[0]
            out: Tensor = self.mlp_norm(self._run("mlp", self._mlp, x), x)[0]
            return out
        attended = self._run("attention", self._attention, x, context)
        return self._run("mlp", self._add_both, attended, x)

    def _run(self, part: Recompute, branch: Any, *arguments: Any) -> Tensor:
        if self.recompute == part and self.training:
            out: Tensor = checkpoint(branch, *arguments, use_reentrant=False)
        else:
            out = branch(*arguments)
        return out

    def _attention(self, x: Tensor, context: Context) -> Tensor:
        is_local = self.attention.window is not None
        rotary = context.local_rotary if is_local else context.rotary
        x = x if self.is_post_norm else self.attention_norm(x)
        out: Tensor = self.attention(x, rotary, context.visibility, context.cache)
        return out

    def _add_both(self, attended: Tensor, x: Tensor) -> Tensor:
        """Add to x what attention found, then what the MLP makes of the sum."""
        normed, x = self.mlp_norm(attended, x)
        return x + self._mlp(normed)

    def _mlp(self, x: Tensor) -> Tensor:
        return F.dropout(self.mlp(x), self.residual_dropout, self.training)


class Transformer(nn.Module):
    """Token ids (B, T) to hidden states (B, T, d_model).

    Set from outside, without effect on results: `unpads` (drop padding before the first layer),
    `splits_documents` (on a CPU, attend within documents; a compiled block wants masks),
    `attends_varlen` (on a GPU, give the kernel the documents' bounds, and not a mask),
    `attends_flex` (FlexAttention wherever it can: without a cache, and without dropout).
    """

    unpads = True
    splits_documents = True
    attends_varlen = True
    attends_flex = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        rows, used = config.padded_vocab_size, config.vocab_size
        self.token_embedding = Embedding(config, rows, used_rows=used)
        if config.positions == "learned":
            positions = config.max_seq_len + config.position_offset
            self.position_embedding = Embedding(config, positions)
        if config.type_vocab_size:
            self.type_embedding = Embedding(config, config.type_vocab_size)
        if config.embedding_norm:
            self.embedding_norm = make_norm(config)
        drops = config.family not in DROPS_ATTENTION_ONLY
        self.embedding_dropout = config.dropout if drops else 0.0
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        # After the last block: post-norm layers end with a norm of their own.
        self.final_norm = nn.Identity() if config.norm_place == "post" else make_norm(config)
        self.checkpoints_blocks = False

    def set_recompute(self, part: Recompute) -> None:
        """Choose what is computed again in the backward pass instead of being kept in memory.

        block: each block whole. attention, mlp: that branch of each block. Changes no result.
        """
        self.checkpoints_blocks = part == "block"
        for block in self.blocks:
            assert isinstance(block, Block)
            block.recompute = "none" if part == "block" else part

    def set_kernels(self, kernels: Kernels) -> None:
        """Choose what computes norms, sums before norms, and rotary positions.

        torch: PyTorch's operations, which `torch.compile` fuses. triton: our kernels, which change
        rounding alone, and run on a GPU. Raises ImportError where Triton is not installed.
        """
        fused = load(kernels)
        for module in self.modules():
            if isinstance(module, Attention):
                module.fused = fused.split_and_turn
            elif isinstance(module, RMSNorm | LayerNorm):
                module.fused = fused.norm

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Compute the hidden states (B, T, d_model) of (B, T) tokens.

        attention_mask: (B, T), 0 for padding on either side; with a cache (B, cache.length + T).
        Hidden states of padding are zeros or meaningless.
        position_ids: (B, T) or (1, T). Default: 0 … T-1 in each row, counted from the first column
        as Hugging Face does (RoBERTa: from the first token that is not padding), or restarting at
        each packed document. Give them for rows padded on the left where positions are learned.
        token_type_ids: (B, T) segments, 0 by default.
        cu_seqlens: (documents + 1,) int32, boundaries over the B·T tokens, as in flash-attention.
        prefix_mask: (B, T) bool, True in the prefix of a text or document, which sees itself whole;
        with a cache as long as attention_mask.
        """
        batch_size, seq_len = input_ids.shape
        self._check(input_ids, attention_mask, cu_seqlens, prefix_mask, cache)
        documents = None
        if cu_seqlens is not None:
            documents = document_layout(cu_seqlens, batch_size, seq_len)
            self._check_length(documents)
        if position_ids is None:
            position_ids = self._positions(input_ids, documents, cache)
        if self._unpads(attention_mask, documents, cache):
            assert attention_mask is not None
            return self._forward_unpadded(
                input_ids, attention_mask, position_ids, token_type_ids, prefix_mask
            )
        x = self._embed(input_ids, position_ids, token_type_ids)
        context = Context(
            self._visibility(x, attention_mask, cu_seqlens, documents, prefix_mask, cache),
            *self._rotary(position_ids),
            cache,
        )
        for block in self.blocks:
            if self.checkpoints_blocks and self.training:
                # Non-reentrant: the other kind fires ZeRO's hooks twice for tied weights.
                x = checkpoint(block, x, context, use_reentrant=False)
            else:
                x = block(x, context)
        if cache is not None:
            cache.length += seq_len
        hidden: Tensor = self.final_norm(x)
        return hidden

    def _positions(
        self, input_ids: Tensor, documents: Documents | None, cache: KVCache | None
    ) -> Tensor:
        if documents is not None:
            return documents.position
        if self.config.family == "roberta":
            is_token = input_ids.ne(self.config.position_offset - 1).to(torch.int64)
            # Padding is at -1, which the offset turns into the padding's own row.
            count: Tensor = is_token.cumsum(1) * is_token
            return count - 1
        past = cache.length if cache is not None else 0
        return torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]

    def _embed(
        self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        x: Tensor = self.token_embedding(input_ids)  # (B, T, d)
        if self.config.type_vocab_size:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.type_embedding(types)
        if self.config.positions == "learned":
            x = x + self.position_embedding(position_ids + self.config.position_offset)
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        return F.dropout(x, self.embedding_dropout, self.training)

    def _rotary(self, position_ids: Tensor) -> tuple[Rotary | None, Rotary | None]:
        if self.config.positions != "rotary":
            return None, None
        everywhere = rotary_table(position_ids, self.config)
        if self.config.rope_theta_local is None or not self.config.sliding_layers:
            return everywhere, everywhere
        return everywhere, rotary_table(position_ids, self.config, local=True)

    def _visibility(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        documents: Documents | None,
        prefix_mask: Tensor | None,
        cache: KVCache | None,
    ) -> Visibility:
        seq_len = x.shape[1]
        past = cache.length if cache is not None else 0
        known = {
            "attention_mask": attention_mask,
            "documents": None if documents is None else documents.number,
            "prefix": prefix_mask,
        }
        drops = self.training and self.config.dropout > 0
        if self.attends_flex and cache is None and not drops:
            masks = make_masks(self.config, seq_len, x.device, **known)
            return Visibility(self.config.causal, flex=masks)
        if cu_seqlens is not None and attention_mask is None:
            is_split = self.splits_documents and not torch.compiler.is_compiling()
            if is_split and x.device.type == "cpu":
                return visibility.by_length(self.config, cu_seqlens, seq_len, prefix=prefix_mask)
            if prefix_mask is None and self._can_varlen(x):
                return Visibility(self.config.causal, cu_seqlens=_with_row_ends(cu_seqlens, x))
        return visibility.masked(self.config, seq_len, past + seq_len, x.device, **known)

    def _can_varlen(self, x: Tensor) -> bool:
        can = can_attend_varlen(x, self.config, training=self.training)
        return self.attends_varlen and can

    def _unpads(
        self, attention_mask: Tensor | None, documents: Documents | None, cache: KVCache | None
    ) -> bool:
        if attention_mask is None or documents is not None or cache is not None:
            return False
        # On a GPU this waits for the mask, and saves far more where texts are short.
        if not self.unpads or not self.splits_documents:
            return False
        weight = self.token_embedding.weight
        if weight.is_cuda and not self._can_varlen(weight):
            return False  # a mask of all tokens by all tokens would cost more than the padding
        if bool(attention_mask.all()):
            return False
        return bool(attention_mask.any())

    def _forward_unpadded(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor | None,
        prefix_mask: Tensor | None,
    ) -> Tensor:
        """Run the real tokens alone, as one row of packed documents, and put them back."""
        is_token = attention_mask.to(torch.bool)
        lengths = is_token.sum(1)
        bounds = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.expand_as(input_ids)[is_token][None]

        hidden = input_ids.new_zeros(
            (*input_ids.shape, self.config.d_model), dtype=self.token_embedding.weight.dtype
        )
        flat = self.forward(
            input_ids[is_token][None],
            position_ids=pick(position_ids),
            token_type_ids=pick(token_type_ids),
            cu_seqlens=bounds,
            prefix_mask=pick(prefix_mask),
        )
        return hidden.masked_scatter(is_token[..., None], flat[0].to(hidden.dtype))

    def _check(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        prefix_mask: Tensor | None,
        cache: KVCache | None,
    ) -> None:
        """Refuse shapes that would fail deep inside, or worse, not fail."""
        batch_size, seq_len = input_ids.shape
        end = seq_len + (cache.length if cache is not None else 0)
        is_limited = self.config.positions == "learned" and cu_seqlens is None
        if is_limited and end > self.config.max_seq_len:
            raise ValueError(
                f"input_ids: got {end} positions, expected at most"
                f" max_seq_len={self.config.max_seq_len} because positions are learned;"
                " shorten the text"
            )
        for name, mask in (("attention_mask", attention_mask), ("prefix_mask", prefix_mask)):
            if mask is not None and mask.shape != (batch_size, end):
                raise ValueError(
                    f"{name}: got shape {tuple(mask.shape)}, expected {(batch_size, end)}: one"
                    " number per token"
                )
        if cache is not None and end > cache.max_len:
            raise ValueError(f"cache: got {end} tokens, expected at most max_len={cache.max_len}")
        if cache is not None and cu_seqlens is not None:
            raise ValueError(
                "cu_seqlens: got boundaries with a cache; generate from one text per row"
            )
        if cache is not None and not self.config.causal:
            raise ValueError("cache: got one, but this model sees both sides and cannot generate")

    def _check_length(self, documents: Documents) -> None:
        on_cpu = documents.position.device.type == "cpu" and not torch.compiler.is_compiling()
        if self.config.positions == "learned" and on_cpu:
            longest = int(documents.position.max()) + 1
            if longest > self.config.max_seq_len:
                raise ValueError(
                    f"cu_seqlens: got a document of {longest} tokens, expected at most max_seq_len"
                    f"={self.config.max_seq_len} because positions are learned; cut it"
                )


def _with_row_ends(cu_seqlens: Tensor, x: Tensor) -> Tensor:
    """Boundaries that also hold the ends of rows, in a shape that the values do not change."""
    batch_size, seq_len, _ = x.shape
    rows = torch.arange(0, batch_size * seq_len + 1, seq_len, device=x.device, dtype=torch.int32)
    return torch.cat((cu_seqlens.to(torch.int32), rows)).sort().values
