"""What a model predicts: heads on the shared trunk, and their losses."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import KVCache
from model.config import HEADS, ModelConfig
from model.kernels import linear_cross_entropy
from model.layers import Linear
from model.presets import preset
from model.transformer import Transformer

IGNORE_INDEX = -100  # Hugging Face's mark for a token that is not predicted


class Output(NamedTuple):
    """What a forward pass returns.

    A named tuple and not a dataclass: DeepSpeed's ZeRO-3 hooks find tensors in tuples and dicts
    only.
    """

    logits: Tensor | None
    loss: Tensor | None


class Model(nn.Module):
    """A trunk with a head. `newly_initialised` names what the checkpoint did not hold."""

    head = ""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.newly_initialised: list[str] = []
        self.trunk = Transformer(config)


class CausalLM(Model):
    """Predicts the next token."""

    head = "causal_lm"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if not config.tie_embeddings:
            self.unembedding = Linear(
                config.d_model, config.vocab_size, bias=False, std=config.init_std
            )

    def output_weight(self) -> Tensor:
        """Return the output matrix (V, d_model), the token embedding's own where they are tied."""
        # Read in each pass and not stored twice: `to_empty` and meta construction cut shared
        # parameters.
        source = self.trunk.token_embedding if self.config.tie_embeddings else self.unembedding
        return source.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        labels: Tensor | None = None,
        targets: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Output:
        """Compute logits (B, T, V), or the loss alone when `targets` is given.

        labels: (B, T) as in Hugging Face: the input ids themselves, shifted here, -100 not
        predicted.
        targets: (B, T) next tokens, already aligned with the inputs, -100 not predicted; then the
        logits are None, and are never held in memory where the fused kernel runs.
        The loss is an fp32 mean over the predicted tokens. The rest as in `Transformer.forward`.
        """
        if labels is not None and targets is not None:
            raise ValueError("labels and targets: got both, expected at most one; drop either")
        hidden = self.trunk(
            input_ids, attention_mask, position_ids, cu_seqlens=cu_seqlens, cache=cache
        )
        if targets is not None:
            return Output(None, self._loss(hidden, targets))
        logits = F.linear(hidden, self.output_weight())
        if labels is None:
            return Output(logits, None)
        shifted = F.pad(
            labels[:, 1:], (0, 1), value=IGNORE_INDEX
        )  # (B, T): position t predicts t+1
        if cu_seqlens is not None:
            shifted = _without_next_document(shifted, cu_seqlens)
        return Output(logits, _cross_entropy(logits, shifted))

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy.reference(
            hidden.flatten(0, 1), self.output_weight(), targets.flatten(), ignore_index=IGNORE_INDEX
        )


class SequenceClassifier(Model):
    """Classifies a whole text by its last token, as Hugging Face's GPT-2 and Llama classes do."""

    head = "sequence"

    def __init__(self, config: ModelConfig) -> None:
        if config.num_labels < 2:
            raise ValueError(
                f"num_labels: got {config.num_labels}, expected 2 or more; regression is not"
                " supported"
            )
        super().__init__(config)
        self.score = Linear(config.d_model, config.num_labels, bias=False, std=config.init_std)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
    ) -> Output:
        """Compute logits (B, num_labels) and, from class numbers `labels` (B,), the loss."""
        hidden = self.trunk(input_ids, attention_mask, position_ids)  # (B, T, d)
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        logits = self.score(hidden[rows, self._last_token(input_ids, attention_mask)])
        return Output(logits, None if labels is None else _cross_entropy(logits, labels))

    def _last_token(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Find the column (B,) of each row's last token that is not padding."""
        column = torch.arange(input_ids.shape[1], device=input_ids.device)
        pad = self.config.pad_token_id
        if pad is not None:
            # By token and not by mask, as Hugging Face does: where pad = eos the text's own eos
            # counts as padding there, and a classifier trained there must be read the same way
            # here.
            return (column * (input_ids != pad)).argmax(-1)
        if attention_mask is not None:
            return (column * attention_mask.to(torch.bool)).argmax(-1)
        if input_ids.shape[0] == 1:
            return column[-1:]
        raise ValueError(
            f"input_ids: got {input_ids.shape[0]} texts and no way to tell padding; set"
            " pad_token_id in the model's config or pass attention_mask"
        )


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean fp32 cross entropy of logits (…, C) against targets (…); 0 when all are ignored."""
    flat = targets.flatten()
    total = F.cross_entropy(
        logits.flatten(0, -2).float(), flat, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total / (flat != IGNORE_INDEX).sum().clamp(min=1)


def _without_next_document(shifted: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Ignore the target of each document's last token: the next token is another document's."""
    token = torch.arange(1, shifted.numel() + 1, device=shifted.device)
    is_last = torch.isin(token, cu_seqlens.to(token.dtype)).view_as(shifted)
    return shifted.masked_fill(is_last, IGNORE_INDEX)


_CLASSES: dict[str, type[Model]] = {cls.head: cls for cls in (CausalLM, SequenceClassifier)}


def build(config: ModelConfig | str, head: str = "causal_lm") -> Model:
    """Build a model from a config or a preset's name, freshly initialised in fp32.

    Weights are drawn from torch's global generator: seed it first. Under `torch.device("meta")`
    nothing is allocated; then use `to_empty` and `model.init.initialise`. Raises `ValueError` for
    an unknown preset or head.
    """
    if head not in _CLASSES:
        raise ValueError(f"head: got {head!r}, expected one of {', '.join(HEADS)}")
    if isinstance(config, str):
        config = preset(config)
    return _CLASSES[head](config)
