"""Heads for fine-tuning: classes or numbers of a text, classes of tokens, a span, a choice."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.families import ProblemType
from model.heads import Model, Output, Pooler, Transform, cross_entropy, first_token
from model.layers import Linear

# The logit of a choice that an example lacks. Its probability is 0 in fp32, and unlike -inf it
# stays a number when multiplied by 0.
NO_CHOICE = -1e4


def _score(config: ModelConfig, classes: int, *, bias: bool) -> Linear:
    return Linear(config, config.d_model, classes, bias=bias, role="head")


class _WholeText(Model):
    """Scores of a whole text, as the family's Hugging Face class computes them.

    Causal models look at the last token; BERT-like ones at the first (or, in ModernBERT, at the
    mean), through a dense layer of their own.
    """

    def __init__(self, config: ModelConfig, scores: int) -> None:
        super().__init__(config)
        if config.family == "modernbert":
            self.transform: nn.Module = Transform(config)
        elif not config.causal:
            self.pooler: nn.Module = Pooler(config)
        self.score = _score(config, scores, bias=not config.causal)
        # RoBERTa's classifier drops out before its dense layer too.
        self.drops_before_pooler = config.family == "roberta"

    def _scores(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        token_type_ids: Tensor | None,
    ) -> Tensor:
        """Compute the logits (B, scores) of texts (B, T)."""
        hidden = self.trunk(
            input_ids, attention_mask, position_ids, token_type_ids=token_type_ids
        )  # (B, T, d)
        logits: Tensor = self.score(self._summary(hidden, input_ids, attention_mask))
        return logits

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
        if self.drops_before_pooler:
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


class SequenceClassifier(_WholeText):
    """Predicts of a whole text its class, any of several, or a number: `config.predicts`."""

    head = "sequence"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, config.num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """Compute logits (B, num_labels) and, from `labels`, the loss.

        labels: (B,) class numbers; (B, num_labels) 0 or 1 where several classes may hold; (B,) or
        (B, num_labels) numbers to regress on. See `sequence_loss`.
        """
        logits = self._scores(input_ids, attention_mask, position_ids, token_type_ids)
        if labels is None:
            return Output(logits)
        return Output(logits, sequence_loss(logits, labels, self.config.predicts))


def sequence_loss(logits: Tensor, labels: Tensor, predicts: ProblemType) -> Tensor:
    """Mean fp32 loss of logits (B, C): cross entropy, binary cross entropy, or squared error.

    The loss of Hugging Face's classes with this problem_type.
    """
    if predicts == "single_label_classification":
        return cross_entropy(logits, labels)
    logits, labels = logits.float(), labels.float().view_as(logits)
    if predicts == "regression":
        return F.mse_loss(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels)


class MultipleChoice(_WholeText):
    """Scores each of several texts, of which one is the right one (as for SWAG, RACE, C3)."""

    head = "choice"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, 1)
        self.drops_before_pooler = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """Compute logits (B, C) of the choices (B, C, T) and, from the right ones (B,), the loss.

        A choice whose attention mask is 0 throughout is none: it gets `NO_CHOICE`.
        """
        shape = input_ids.shape[:2]
        mask, positions, types = (
            None if given is None else given.flatten(0, 1)
            for given in (attention_mask, position_ids, token_type_ids)
        )
        logits = self._scores(input_ids.flatten(0, 1), mask, positions, types).view(shape)
        if attention_mask is not None:
            logits = logits.masked_fill(~attention_mask.any(-1), NO_CHOICE)
        return Output(logits, None if labels is None else cross_entropy(logits, labels))


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
