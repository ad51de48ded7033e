"""The trunk that every head shares: embeddings, blocks, final norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import Attention, KVCache, attention_mask_for, document_layout
from model.config import ModelConfig
from model.layers import Embedding, Rotary, make_mlp, make_norm, rotary_table


class Block(nn.Module):
    """One pre-norm layer: attention, then MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config)
        self.residual_dropout = config.dropout if config.family == "gpt2" else 0.0

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None,
        mask: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Map (B, T, d_model) to (B, T, d_model)."""
        x = x + self.attention(self.attention_norm(x), rotary, mask, cache)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.residual_dropout, self.training)


class Transformer(nn.Module):
    """Token ids (B, T) to hidden states (B, T, d_model)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        std = config.init_std
        self.token_embedding = Embedding(config.vocab_size, config.d_model, std=std)
        if config.positions == "learned":
            self.position_embedding = Embedding(config.max_seq_len, config.d_model, std=std)
        self.embedding_dropout = config.dropout if config.family == "gpt2" else 0.0
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = make_norm(config)
        self.checkpoints_activations = False  # set from outside; changes memory, not results

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Compute the hidden states (B, T, d_model) of (B, T) tokens.

        attention_mask: (B, T), 0 for padding on either side; with a cache (B, cache.length + T).
        position_ids: (B, T) or (1, T). Default: 0 … T-1 in each row, counted from the first column
        as Hugging Face does, or restarting at each packed document. Give them for rows padded on
        the left where positions are learned.
        cu_seqlens: (documents + 1,) int32, boundaries over the B·T tokens, as in flash-attention.
        """
        batch_size, seq_len = input_ids.shape
        past = cache.length if cache is not None else 0
        self._check(input_ids, attention_mask, cu_seqlens, cache)
        documents = None
        if cu_seqlens is not None:
            documents, within = document_layout(cu_seqlens, batch_size, seq_len)
            position_ids = within if position_ids is None else position_ids
        if position_ids is None:
            position_ids = torch.arange(past, past + seq_len, device=input_ids.device)[None]
        mask = attention_mask_for(
            seq_len, past + seq_len, input_ids.device, attention_mask, documents
        )
        x = self.token_embedding(input_ids)  # (B, T, d)
        rotary = None
        if self.config.positions == "learned":
            x = x + self.position_embedding(position_ids)
        else:
            rotary = rotary_table(position_ids, self.config.head_dim, self.config.rope_theta)
        x = F.dropout(x, self.embedding_dropout, self.training)
        for block in self.blocks:
            if self.checkpoints_activations and self.training:
                # Non-reentrant: the other kind fires ZeRO's hooks twice for tied weights.
                x = checkpoint(block, x, rotary, mask, use_reentrant=False)
            else:
                x = block(x, rotary, mask, cache)
        if cache is not None:
            cache.length += seq_len
        hidden: Tensor = self.final_norm(x)
        return hidden

    def _check(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        cache: KVCache | None,
    ) -> None:
        """Refuse shapes that would fail deep inside, or worse, not fail."""
        batch_size, seq_len = input_ids.shape
        end = seq_len + (cache.length if cache is not None else 0)
        if self.config.positions == "learned" and end > self.config.max_seq_len:
            raise ValueError(
                f"input_ids: got {end} positions, expected at most"
                f" max_seq_len={self.config.max_seq_len} because positions are learned;"
                " shorten the text"
            )
        if attention_mask is not None and attention_mask.shape != (batch_size, end):
            raise ValueError(
                f"attention_mask: got shape {tuple(attention_mask.shape)}, expected"
                f" {(batch_size, end)}: one number per token"
            )
        if cache is not None and cu_seqlens is not None:
            raise ValueError(
                "cu_seqlens: got boundaries with a cache; generate from one text per row"
            )
