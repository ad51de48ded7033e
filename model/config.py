"""The shape of a model, as data. Imports no torch, so that launchers start fast."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Family = Literal["gpt2", "llama"]
Norm = Literal["layernorm", "rmsnorm"]
Positions = Literal["learned", "rotary"]
Mlp = Literal["gelu_tanh", "swiglu"]
Head = Literal["causal_lm", "sequence"]

FAMILIES: tuple[str, ...] = get_args(Family)
HEADS: tuple[str, ...] = get_args(Head)


class FamilyTraits(NamedTuple):
    """What a family's Hugging Face class fixes (`bias=None`: the class leaves it open)."""

    norm: Norm
    positions: Positions
    mlp: Mlp
    bias: bool | None
    tie_embeddings: bool  # default only; both classes allow both
    head_dim_is_free: bool


TRAITS: dict[str, FamilyTraits] = {
    "gpt2": FamilyTraits("layernorm", "learned", "gelu_tanh", True, True, False),
    "llama": FamilyTraits("rmsnorm", "rotary", "swiglu", None, False, True),
}


def _traits(data: dict[str, Any]) -> FamilyTraits:
    # A wrong family is reported by its own field; until then any traits do.
    return TRAITS.get(data.get("family", ""), TRAITS["gpt2"])


def _default_d_ff(data: dict[str, Any]) -> int:
    d_model = int(data.get("d_model", 1))
    if _traits(data).mlp == "swiglu":
        # Three matrices instead of two: 8/3 · d_model keeps the parameter count of 4 · d_model
        # (Shazeer 2020, "GLU Variants"), rounded up to a multiple that tensor cores like.
        multiple = 256 if d_model >= 512 else 32
        return -(-8 * d_model // (3 * multiple)) * multiple
    return 4 * d_model


class ModelConfig(BaseModel):
    """The shape of one model: everything that decides its parameters and its logits.

    Keys left out (or None) take the family's value. Raises `pydantic.ValidationError`, a
    `ValueError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    family: Family = Field(
        description="architecture; maps onto the Hugging Face model_type of the same name"
    )
    n_layers: int = Field(ge=1, description="Transformer blocks")
    n_heads: int = Field(ge=1, description="query heads per layer")
    d_model: int = Field(ge=1, description="width of the residual stream")
    vocab_size: int = Field(ge=1, description="rows of the token embedding")
    max_seq_len: int = Field(
        ge=1, description="positions, in tokens; a hard limit where positions are learned"
    )
    n_kv_heads: int = Field(
        default_factory=lambda data: data.get("n_heads", 1),
        ge=1,
        description="key/value heads per layer, shared by the query heads (default: n_heads)",
    )
    head_dim: int = Field(
        default_factory=lambda data: max(1, data.get("d_model", 1) // data.get("n_heads", 1)),
        ge=1,
        description="width of one head (default: d_model / n_heads)",
    )
    d_ff: int = Field(
        default_factory=_default_d_ff,
        ge=1,
        description="inner width of the MLP (default: 4·d_model; with swiglu 8/3·d_model, rounded)",
    )
    norm: Norm = Field(
        default_factory=lambda data: _traits(data).norm,
        description="normalisation before attention, MLP and output (default: the family's)",
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="added to the variance in every norm")
    positions: Positions = Field(
        default_factory=lambda data: _traits(data).positions,
        description="how positions enter (default: the family's)",
    )
    rope_theta: float = Field(
        default=10000.0, gt=0, description="base of the rotary frequencies; unused when learned"
    )
    mlp: Mlp = Field(
        default_factory=lambda data: _traits(data).mlp,
        description="kind of MLP (default: the family's)",
    )
    bias: bool = Field(
        default_factory=lambda data: bool(_traits(data).bias),
        description="bias vectors in attention and MLP (default: the family's)",
    )
    tie_embeddings: bool = Field(
        default_factory=lambda data: _traits(data).tie_embeddings,
        description="output matrix = token embedding (default: the family's)",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="dropout probability; gpt2: embeddings, attention, residual; llama: attention",
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
        default=2, ge=1, description="classes of a sequence head (default: as many as id2label)"
    )
    id2label: dict[int, str] | None = Field(
        default=None, description="name of each class of a sequence head (default: LABEL_0, …)"
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
        problems = [*self._shape_problems(), *self._family_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _shape_problems(self) -> list[str]:
        problems = []
        if self.d_model % self.n_heads:
            # Llama's class demands this even when head_dim is given.
            problems.append(
                f"n_heads: got {self.n_heads}, expected a divisor of d_model={self.d_model};"
                f" use {_nearest_divisor(self.d_model, self.n_heads)}"
            )
        if self.n_heads % self.n_kv_heads:
            problems.append(
                f"n_kv_heads: got {self.n_kv_heads}, expected a divisor of n_heads={self.n_heads};"
                f" use {_nearest_divisor(self.n_heads, self.n_kv_heads)}"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            problems.append(
                f"head_dim: got {self.head_dim}, expected an even number because rotary positions"
                f" turn pairs; set head_dim={self.head_dim + 1} or change n_heads"
            )
        ids = self.id2label
        if ids is not None and sorted(ids) != list(range(self.num_labels)):
            problems.append(
                f"id2label: got keys {sorted(ids)[:8]}, expected 0 … {self.num_labels - 1} because"
                f" num_labels={self.num_labels}; name every class or leave id2label out"
            )
        return problems

    def _family_problems(self) -> list[str]:
        traits = TRAITS[self.family]
        problems = [
            f"{key}: got {getattr(self, key)!r}, expected {value!r} because the Hugging Face class"
            f" of family={self.family!r} has no other; leave {key} out or choose another family"
            for key, value in traits._asdict().items()
            if key in ("norm", "positions", "mlp", "bias")
            and value is not None
            and getattr(self, key) != value
        ]
        if not traits.head_dim_is_free:
            own = {"n_kv_heads": self.n_heads, "head_dim": max(1, self.d_model // self.n_heads)}
            problems += [
                f"{key}: got {getattr(self, key)}, expected {value} because the Hugging Face"
                f" class of family={self.family!r} derives it; leave {key} out, or use"
                f" family='llama'"
                for key, value in own.items()
                if getattr(self, key) != value and self.d_model % self.n_heads == 0
            ]
        return problems

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a text; empty when there is none."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), n))


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
