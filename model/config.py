"""The shape of a model, as data. Imports no torch, so that launchers start fast."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.config_checks import problems_of_family, problems_of_shape
from model.families import (
    FAMILIES,
    GATED,
    HEADS,
    LABEL_KEYS,
    TRAITS,
    Family,
    Mlp,
    Norm,
    NormPlace,
    Pooling,
    Positions,
    ProblemType,
    Traits,
)

__all__ = ["FAMILIES", "HEADS", "LABEL_KEYS", "TRAITS", "ModelConfig", "RopeScaling", "error_line"]

# Far beyond any model: a file that says more would keep its reader busy for hours.
MAX_LAYERS, MAX_SIZE = 10_000, 2**31 - 1
_MAX_WIDTH = 2**20


class RopeScaling(BaseModel):
    """How rotary frequencies are stretched for texts longer than those of training.

    linear: all divided by `factor` (Chen et al. 2023). llama3: only those that turn less than
    `low_freq_factor` times in the original context, blended up to `high_freq_factor` (Llama 3.1).
    yarn: blended between `beta_fast` and `beta_slow` turns, and attention scaled by
    `attention_factor`, default 0.1·ln(factor) + 1 (Peng et al. 2023).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["linear", "llama3", "yarn"]
    factor: float = Field(ge=1)
    original_max_seq_len: int | None = Field(default=None, ge=1)
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    attention_factor: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_a_context(self) -> "RopeScaling":
        if self.kind != "linear" and self.original_max_seq_len is None:
            raise ValueError(f"original_max_seq_len: missing, and kind={self.kind!r} needs it")
        return self


def _traits(data: dict[str, Any]) -> Traits:
    # A wrong family is reported by its own field; until then any traits do.
    return TRAITS.get(data.get("family", ""), TRAITS["gpt2"])


def _of_family(key: str) -> Any:
    """The default of a key that the family decides."""
    return lambda data: _traits(data).defaults[key]


def _default_d_ff(data: dict[str, Any]) -> int:
    d_model = int(data.get("d_model", 1))
    if data.get("mlp", "gelu") in GATED:
        # Three matrices instead of two: 8/3 · d_model keeps the parameter count of 4 · d_model
        # (Shazeer 2020, "GLU Variants"), rounded up to a multiple that tensor cores like.
        multiple = 256 if d_model >= 512 else 32
        return -(-8 * d_model // (3 * multiple)) * multiple
    return 4 * d_model


def _default_sliding_layers(data: dict[str, Any]) -> tuple[int, ...]:
    """Every layer; in ModernBERT all but each third (Warner et al. 2024, §2.1.2)."""
    if data.get("sliding_window") is None:
        return ()
    every = range(int(data.get("n_layers", 0)))
    return tuple(i for i in every if data.get("family") != "modernbert" or i % 3)


class ModelConfig(BaseModel):
    """The shape of one model: everything that decides its parameters and its logits.

    Keys left out (or None) take the family's value. Raises `pydantic.ValidationError`, a
    `ValueError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    family: Family = Field(
        description="architecture; maps onto the Hugging Face model_type of the same name. custom:"
        " every switch is free, and transformers has no class for it"
    )
    n_layers: int = Field(ge=1, le=MAX_LAYERS, description="Transformer blocks")
    n_heads: int = Field(ge=1, le=_MAX_WIDTH, description="query heads per layer")
    d_model: int = Field(ge=1, le=_MAX_WIDTH, description="width of the residual stream")
    vocab_size: int = Field(ge=1, le=MAX_SIZE, description="rows of the token embedding")
    max_seq_len: int = Field(
        ge=1,
        le=MAX_SIZE,
        description="positions, in tokens; a hard limit where positions are learned",
    )
    n_kv_heads: int = Field(
        default_factory=lambda data: data.get("n_heads", 1),
        ge=1,
        le=_MAX_WIDTH,
        description="key/value heads per layer, shared by the query heads (default: n_heads)",
    )
    head_dim: int = Field(
        default_factory=lambda data: max(1, data.get("d_model", 1) // data.get("n_heads", 1)),
        ge=1,
        le=_MAX_WIDTH,
        description="width of one head (default: d_model / n_heads)",
    )
    causal: bool = Field(
        default_factory=_of_family("causal"),
        description="a token sees those before it (GPT), or all (BERT) (default: the family's)",
    )
    norm: Norm = Field(
        default_factory=_of_family("norm"),
        description="kind of normalisation (default: the family's)",
    )
    norm_place: NormPlace = Field(
        default_factory=_of_family("norm_place"),
        description="pre: before attention and MLP; post: after the sum (default: the family's)",
    )
    norm_eps: float = Field(
        default_factory=_of_family("norm_eps"),
        gt=0,
        description="added to the variance in every norm (default: the family's)",
    )
    norm_bias: bool = Field(
        default_factory=_of_family("norm_bias"),
        description="bias vectors in layer norms (default: the family's)",
    )
    embedding_norm: bool = Field(
        default_factory=_of_family("embedding_norm"),
        description="a norm right after the embeddings (default: the family's)",
    )
    positions: Positions = Field(
        default_factory=_of_family("positions"),
        description="how positions enter (default: the family's)",
    )
    rope_theta: float = Field(
        default_factory=_of_family("rope_theta"),
        gt=0,
        description="base of the rotary frequencies (default: the family's)",
    )
    rope_theta_local: float | None = Field(
        default_factory=_of_family("rope_theta_local"),
        gt=0,
        description="the same in layers with a sliding window (default: the family's, or"
        " rope_theta)",
    )
    rope_scaling: RopeScaling | None = Field(
        default=None, description="stretches rotary frequencies: {kind, factor, …}"
    )
    sliding_window: int | None = Field(
        default_factory=_of_family("sliding_window"),
        ge=2,
        description="tokens that a token sees in a sliding layer: itself and those before it, or"
        " half on each side where not causal (default: the family's)",
    )
    sliding_layers: tuple[int, ...] = Field(
        default_factory=_default_sliding_layers,
        description="layers with the sliding window, counted from 0 (default: all; modernbert: all"
        " but each third)",
    )
    qk_norm: bool = Field(
        default_factory=_of_family("qk_norm"),
        description="RMS norm of each query and key head (default: the family's)",
    )
    mlp: Mlp = Field(
        default_factory=_of_family("mlp"), description="kind of MLP (default: the family's)"
    )
    d_ff: int = Field(
        default_factory=_default_d_ff,
        ge=1,
        le=MAX_SIZE,
        description="inner width of the MLP (default: 4·d_model; gated 8/3·d_model, rounded)",
    )
    bias: bool = Field(
        default_factory=_of_family("bias"),
        description="bias vectors in attention and MLP (default: the family's)",
    )
    mlp_bias: bool = Field(
        default_factory=lambda data: data.get("family") != "qwen3" and data.get("bias", False),
        description="bias vectors in the MLP (default: as bias; qwen3: none)",
    )
    type_vocab_size: int = Field(
        default_factory=_of_family("type_vocab_size"),
        ge=0,
        le=MAX_SIZE,
        description="rows of the segment embedding, 0 for none (default: the family's)",
    )
    tie_embeddings: bool = Field(
        default_factory=_of_family("tie_embeddings"),
        description="output matrix = token embedding (default: the family's)",
    )
    logit_softcap: float | None = Field(
        default=None, gt=0, description="logits become cap·tanh(logits / cap)"
    )
    pooling: Pooling = Field(
        default_factory=_of_family("pooling"),
        description="the token that stands for a text in a sequence head (default: the family's)",
    )
    vocab_multiple: int = Field(
        default=1,
        ge=1,
        description="rows of the embedding in memory are rounded up to this multiple, which GPUs"
        " like (64); never seen outside",
    )
    mup_base_width: int | None = Field(
        default=None,
        ge=1,
        description="maximal update parametrisation: the d_model at which optim.lr and init_std"
        " were tuned",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="dropout probability: embeddings, attention, residual; llama, qwen3: attention",
    )
    init_std: float = Field(
        default=0.02, gt=0, description="standard deviation of the initial weights"
    )
    bos_token_id: int | None = Field(default=None, ge=0, description="begin-of-text token")
    eos_token_id: int | tuple[int, ...] | None = Field(
        default=None, description="end-of-text token, or several, any of which ends generation"
    )
    pad_token_id: int | None = Field(default=None, ge=0, description="padding token")
    num_labels: int = Field(
        default=2,
        ge=1,
        le=MAX_SIZE,
        description="classes of a sequence head (default: as many as id2label)",
    )
    id2label: dict[int, str] | None = Field(
        default=None, description="name of each class of a sequence head (default: LABEL_0, …)"
    )
    problem_type: ProblemType | None = Field(
        default=None,
        description="what a sequence head predicts: one class, any of several, or num_labels"
        " numbers (default: one class; with num_labels=1 a number)",
    )

    @model_validator(mode="before")
    @classmethod
    def _none_means_default(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        if "num_labels" not in given and isinstance(given.get("id2label"), Mapping):
            given["num_labels"] = len(given["id2label"])
        return given

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        problems = [*problems_of_shape(self), *problems_of_family(self)]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that this family's Hugging Face classes have."""
        heads = TRAITS[self.family].heads
        if self.family == "custom":
            wrong = ("masked_lm", "pretraining") if self.causal else ("causal_lm",)
            return tuple(head for head in heads if head not in wrong)
        return heads

    @property
    def predicts(self) -> ProblemType:
        """What a sequence head predicts; as in Hugging Face, a single output is a number."""
        default: ProblemType = (
            "regression" if self.num_labels == 1 else "single_label_classification"
        )
        return self.problem_type or default

    @property
    def lm_head(self) -> str:
        """The head that this model is pretrained with, where none is named."""
        return "causal_lm" if self.causal else "masked_lm"

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token embedding in memory."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def position_offset(self) -> int:
        """Rows of the position embedding before position 0: RoBERTa counts from its padding id."""
        return (self.pad_token_id or 0) + 1 if self.family == "roberta" else 0

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.mlp in GATED

    @property
    def width_ratio(self) -> float:
        """How much wider than the model whose learning rate this is (muP); 1 without."""
        return self.d_model / (self.mup_base_width or self.d_model)

    def window_of(self, layer: int) -> int | None:
        """The sliding window of a layer, or None where it sees everything."""
        return self.sliding_window if layer in self.sliding_layers else None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a text; empty when there is none."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id


def error_line(error: ValidationError) -> str:
    """Everything wrong with a `ModelConfig`, in one line for a person."""
    parts = []
    for item in error.errors(include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        if key := ".".join(str(part) for part in item["loc"]):
            got = "" if item["type"] == "missing" else f" (got {item['input']!r})"
            message = f"{key}: {message}{got}"
        parts.append(message)
    return "; ".join(parts)
