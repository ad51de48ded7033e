"""Heads for fine-tuning: a class of a text, of each token, or a span."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.heads import Model, Output, Pooler, Transform, cross_entropy, first_token
from model.layers import Linear


def _score(config: ModelConfig, classes: int, *, bias: bool) -> Linear:
    return Linear(config, config.d_model, classes, bias=bias, role="head")


class SequenceClassifier(Model):
    """Classifies a whole text, as the family's Hugging Face class does.

    Causal models look at the last token; BERT-like ones at the first (or, in ModernBERT, at the
    mean), through a dense layer of their own.
    """

    head = "sequence"

    def __init__(self, config: ModelConfig) -> None:
        if config.num_labels < 2:
            raise ValueError(
                f"num_labels: got {config.num_labels}, expected 2 or more; regression is not"
                " supported"
            )
        super().__init__(config)
        if config.family == "modernbert":
            self.transform: nn.Module = Transform(config)
        elif not config.causal:
            self.pooler: nn.Module = Pooler(config)
        self.score = _score(config, config.num_labels, bias=not config.causal)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """Compute logits (B, num_labels) and, from class numbers `labels` (B,), the loss."""
        hidden = self.trunk(
            input_ids, attention_mask, position_ids, token_type_ids=token_type_ids
        )  # (B, T, d)
        pooled = self._summary(hidden, input_ids, attention_mask)
        logits = self.score(pooled)
        return Output(logits, None if labels is None else cross_entropy(logits, labels))

    def _summary(self, hidden: Tensor, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        """One vector (B, d) for each text."""
        config = self.config
        if config.pooling == "last":
            rows = torch.arange(input_ids.shape[0], device=input_ids.device)
            pooled = hidden[rows, self._last_token(input_ids, mask)]
        elif config.pooling == "mean" and mask is not None:
            is_token = mask.to(torch.bool)[..., None]
            # Counted as integers: bf16 has none between 256 and 258.
            pooled = (hidden * is_token).sum(1) / is_token.sum(1).clamp(min=1)
        else:
            pooled = hidden.mean(1) if config.pooling == "mean" else first_token(hidden, mask)
        if config.causal:
            return pooled
        if config.family == "modernbert":
            return F.dropout(self.transform(pooled), config.dropout, self.training)
        if config.family == "roberta":
            pooled = F.dropout(pooled, config.dropout, self.training)
        return F.dropout(self.pooler(pooled), config.dropout, self.training)

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


class _EachToken(Model):
    """Scores of every token."""

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__(config)
        if config.family == "modernbert":
            self.transform: nn.Module = Transform(config)
        self.score = _score(config, classes, bias=True)
        self.drops = True

    def _scores(self, hidden: Tensor) -> Tensor:
        if self.config.family == "modernbert":
            hidden = self.transform(hidden)
        if self.drops:
            hidden = F.dropout(hidden, self.config.dropout, self.training)
        scores: Tensor = self.score(hidden)
        return scores


class TokenClassifier(_EachToken):
    """Classifies each token, as for named entities."""

    head = "token"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, config.num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """Compute logits (B, T, num_labels); labels (B, T), -100 not counted, give the loss."""
        hidden = self.trunk(
            input_ids,
            attention_mask,
            position_ids,
            token_type_ids=token_type_ids,
            cu_seqlens=cu_seqlens,
        )
        logits = self._scores(hidden)
        return Output(logits, None if labels is None else cross_entropy(logits, labels))


class SpanExtractor(_EachToken):
    """Finds where an answer starts and ends (Devlin et al. 2019, §4.2)."""

    head = "span"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, 2)
        self.drops = config.family == "modernbert"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """Compute logits (B, T, 2) of start and end.

        labels: (B, 2) columns of the first and last token; a place outside the text is not counted.
        The loss is the mean of both.
        """
        hidden = self.trunk(input_ids, attention_mask, position_ids, token_type_ids=token_type_ids)
        logits = self._scores(hidden)
        if labels is None:
            return Output(logits)
        length = input_ids.shape[1]
        inside = labels.masked_fill((labels < 0) | (labels >= length), -100)
        if attention_mask is not None:  # padding is no answer
            logits = logits.masked_fill(attention_mask[..., None] == 0, -torch.inf)
        start, end = (cross_entropy(logits[:, :, side], inside[:, side]) for side in (0, 1))
        return Output(logits, (start + end) / 2)
