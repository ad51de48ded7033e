"""What a model predicts: heads on the shared trunk, and their losses."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import KVCache
from model.config import HEADS, ModelConfig
from model.kernels import Kernels, linear_cross_entropy
from model.layers import ACTIVATIONS, Linear, make_norm
from model.presets import preset
from model.transformer import Transformer

IGNORE_INDEX = -100  # Hugging Face's mark for a token that is not predicted


class Output(NamedTuple):
    """What a forward pass returns; None where it was not asked for.

    A named tuple and not a dataclass: DeepSpeed's ZeRO-3 hooks find tensors in tuples and dicts
    only.
    """

    logits: Tensor | None = None
    loss: Tensor | None = None  # fp32; the sum of the two below where there are two
    token_loss: Tensor | None = None  # mean over the predicted tokens
    pair_loss: Tensor | None = None  # mean over the pairs
    pair_logits: Tensor | None = None  # (B, 2)
    n_correct: Tensor | None = None  # predicted tokens whose likeliest class is right
    n_pairs_correct: Tensor | None = None


class Model(nn.Module):
    """A trunk with a head. `newly_initialised` names what the checkpoint did not hold."""

    head = ""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.newly_initialised: list[str] = []
        self.trunk = Transformer(config)

    def set_kernels(self, kernels: Kernels) -> None:
        """Choose what computes fused operations; see `Transformer.set_kernels`."""
        self.trunk.set_kernels(kernels)


class LanguageModel(Model):
    """A head over the vocabulary, its matrix the token embedding's own where they are tied.

    Set from outside, for training alone: `label_smoothing`, `z_loss` (see `linear_cross_entropy`),
    and `compiles_loss`, whether torch's compiler makes the loss's kernel where ours does not.
    """

    label_smoothing = 0.0
    z_loss = 0.0
    compiles_loss = False
    kernels: Kernels = "torch"  # set by `set_kernels`

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if not config.tie_embeddings:
            self.unembedding = Linear(
                config, config.d_model, config.padded_vocab_size, bias=False, role="output"
            )

    def set_kernels(self, kernels: Kernels) -> None:
        """Choose what computes fused operations, the loss over the vocabulary among them."""
        super().set_kernels(kernels)
        self.kernels = kernels

    def output_weight(self) -> Tensor:
        """Return the output matrix (rows in memory, d_model)."""
        # Read in each pass and not stored twice: `to_empty` and meta construction cut shared
        # parameters.
        source = self.trunk.token_embedding if self.config.tie_embeddings else self.unembedding
        return source.weight

    def output_bias_in_memory(self) -> Tensor | None:
        """Return the bias of the output, as long as the matrix in memory, or None."""
        return None

    def _logits(self, hidden: Tensor) -> Tensor:
        return linear_cross_entropy.logits(
            hidden,
            self.output_weight(),
            bias=self.output_bias_in_memory(),
            vocab_size=self.config.vocab_size,
            softcap=self.config.logit_softcap,
        )

    def _score(self, hidden: Tensor, targets: Tensor) -> Output:
        """Loss of hidden states (N, d) at targets (N,); outside training also how many are hit."""
        is_compiled = self.compiles_loss and self.training and self.kernels == "torch"
        if self.config.logit_softcap is not None and hidden.device.type == "cpu":
            is_compiled = False  # the compiler would keep a tanh of all logits in fp32
        found = linear_cross_entropy.loss(
            hidden,
            self.output_weight(),
            targets,
            bias=self.output_bias_in_memory(),
            vocab_size=self.config.vocab_size,
            softcap=self.config.logit_softcap,
            label_smoothing=self.label_smoothing if self.training else 0.0,
            z_loss=self.z_loss if self.training else 0.0,
            ignore_index=IGNORE_INDEX,
            counts_correct=not self.training,
            kernels="inductor" if is_compiled else self.kernels,
        )
        return Output(loss=found.loss, token_loss=found.loss, n_correct=found.n_correct)


class CausalLM(LanguageModel):
    """Predicts the next token."""

    head = "causal_lm"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        labels: Tensor | None = None,
        targets: Tensor | None = None,
        rows: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Output:
        """Compute logits (B, T, V), or the loss alone when `targets` is given.

        labels: (B, T) as in Hugging Face: the input ids themselves, shifted here, -100 not
        predicted.
        targets: (B, T) next tokens, already aligned with the inputs, -100 not predicted; then the
        logits are None, and are never held in memory at once.
        rows: (N,) int64, where in the flattened targets those to predict are; without it the loss
        goes over all of them. Without targets or labels: the places whose logits (N, V) are wanted.
        The loss is an fp32 mean over the predicted tokens. The rest as in `Transformer.forward`.
        """
        if labels is not None and targets is not None:
            raise ValueError("labels and targets: got both, expected at most one; drop either")
        hidden = self.trunk(
            input_ids,
            attention_mask,
            position_ids,
            token_type_ids=token_type_ids,
            cu_seqlens=cu_seqlens,
            prefix_mask=prefix_mask,
            cache=cache,
        )
        if targets is not None:
            return self._score(*_pick(hidden, targets, rows))
        logits = self._logits(hidden if rows is None else hidden.flatten(0, 1)[rows])
        if labels is None:
            return Output(logits)
        shifted = F.pad(
            labels[:, 1:], (0, 1), value=IGNORE_INDEX
        )  # (B, T): position t predicts t+1
        if cu_seqlens is not None:
            shifted = _without_next_document(shifted, cu_seqlens)
        return Output(logits, cross_entropy(logits, shifted))


class Transform(nn.Module):
    """norm(activation(dense(x))), between trunk and output in BERT's heads (Devlin et al. 2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        is_modern = config.family == "modernbert"
        d = config.d_model
        self.dense = Linear(
            config, d, d, bias=not is_modern, role="residual" if is_modern else "hidden"
        )
        # RoBERTa's and ModernBERT's are fixed; BERT's follows the MLP's.
        follows = config.family == "bert" and not config.is_gated
        self.activation = ACTIVATIONS[config.mlp if follows else "gelu"]
        self.norm = make_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d) to (…, d)."""
        out: Tensor = self.norm(self.activation(self.dense(x)))
        return out


class MaskedModel(LanguageModel):
    """What every head over masked tokens has: BERT's transform, and a bias of the output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.transform = Transform(config)
        self.output_bias = nn.Parameter(torch.zeros(config.padded_vocab_size))

    def reset_parameters(self) -> None:
        """Zero the output's bias."""
        nn.init.zeros_(self.output_bias)

    def output_bias_in_memory(self) -> Tensor | None:
        """Return the bias of the output (rows in memory,)."""
        return self.output_bias

    def _predict(
        self, hidden: Tensor, labels: Tensor | None, targets: Tensor | None, rows: Tensor | None
    ) -> Output:
        if targets is not None:
            if rows is None:
                rows = (targets.flatten() != IGNORE_INDEX).nonzero()[:, 0]
            picked, wanted = _pick(hidden, targets, rows)
            return self._score(self.transform(picked), wanted)
        picked = hidden if rows is None else hidden.flatten(0, 1)[rows]
        logits = self._logits(self.transform(picked))
        loss = None if labels is None else cross_entropy(logits, labels)
        return Output(logits, loss, loss)


class MaskedLM(MaskedModel):
    """Predicts masked tokens from both sides."""

    head = "masked_lm"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        labels: Tensor | None = None,
        targets: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Output:
        """Compute logits (B, T, V), or the loss alone when `targets` is given.

        labels, targets: (B, T) the masked tokens, -100 not predicted. With targets the head is
        computed on the predicted tokens only: `rows` (N,), where they are in the flattened targets,
        saves a GPU the wait for their number. Rows without targets or labels: logits (N, V) there.
        The loss is an fp32 mean over the predicted tokens. The rest as in `Transformer.forward`.
        """
        hidden = self.trunk(
            input_ids,
            attention_mask,
            position_ids,
            token_type_ids=token_type_ids,
            cu_seqlens=cu_seqlens,
        )
        return self._predict(hidden, labels, targets, rows)


class Pooler(nn.Module):
    """tanh(dense(first token)), BERT's summary of a text (Devlin et al. 2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Linear(config, config.d_model, config.d_model, bias=True, role="hidden")

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, d) to (B, d)."""
        return torch.tanh(self.dense(hidden))


class Pretraining(MaskedModel):
    """Predicts masked tokens and whether two sentences belong together, as BERT was trained."""

    head = "pretraining"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.pooler = Pooler(config)
        self.pair_score = Linear(config, config.d_model, 2, bias=True, role="head")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        targets: Tensor | None = None,
        rows: Tensor | None = None,
        pair_labels: Tensor | None = None,
    ) -> Output:
        """Compute both heads; each row of (B, T) is one pair, so there are no packed documents.

        pair_labels: (B,) 0 where the second sentence follows the first, 1 where not, -100 for a row
        that is no pair. The loss is the sum of both means (Devlin et al. 2019, appendix A.2). The
        rest as in `MaskedLM.forward`.
        """
        hidden = self.trunk(input_ids, attention_mask, position_ids, token_type_ids=token_type_ids)
        out = self._predict(hidden, labels, targets, rows)
        pairs = self.pair_score(self.pooler(first_token(hidden, attention_mask)))  # (B, 2)
        if pair_labels is None:
            return out._replace(pair_logits=pairs)
        pair_loss = cross_entropy(pairs, pair_labels)
        return out._replace(
            loss=pair_loss if out.loss is None else out.loss + pair_loss,
            pair_loss=pair_loss,
            pair_logits=pairs,
            n_pairs_correct=(pairs.argmax(-1) == pair_labels).sum(),
        )


def _pick(hidden: Tensor, targets: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Hidden states (N, d) and targets (N,) at the flattened places `rows`, or at all."""
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    return (flat, wanted) if rows is None else (flat[rows], wanted[rows])


def first_token(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Hidden states (B, d) of each row's first token that is not padding."""
    if attention_mask is None:
        return hidden[:, 0]
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[rows, attention_mask.to(torch.int64).argmax(1)]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
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


def build(config: ModelConfig | str, head: str | None = None) -> Model:
    """Build a model from a config or a preset's name, freshly initialised in fp32.

    head: None for the language model's own, causal_lm or masked_lm.
    Weights are drawn from torch's global generator: seed it first. Under `torch.device("meta")`
    nothing is allocated; then use `to_empty` and `model.init.initialise`. Raises `ValueError` for
    an unknown preset, or a head that the family does not have.
    """
    from model.task_heads import (
        MultipleChoice,
        SequenceClassifier,
        SpanExtractor,
        TokenClassifier,
    )

    if isinstance(config, str):
        config = preset(config)
    head = head or config.lm_head
    if head not in HEADS:
        raise ValueError(f"head: got {head!r}, expected one of {', '.join(HEADS)}")
    if head not in config.heads:
        raise ValueError(
            f"head: got {head!r}, expected one of {', '.join(config.heads)}, which family"
            f"={config.family!r} has"
        )
    classes: tuple[Any, ...] = (
        *(CausalLM, MaskedLM, Pretraining),
        *(SequenceClassifier, TokenClassifier, SpanExtractor, MultipleChoice),
    )
    found: Model = {cls.head: cls for cls in classes}[head](config)
    return found
