"""What each family is: what its Hugging Face class fixes, and our defaults for the rest."""

from typing import Any, Literal, NamedTuple, get_args

Family = Literal["gpt2", "llama", "qwen3", "bert", "roberta", "modernbert", "custom"]
Norm = Literal["layernorm", "rmsnorm"]
NormPlace = Literal["pre", "post"]
Positions = Literal["learned", "rotary", "none"]
Mlp = Literal["gelu", "gelu_tanh", "relu", "relu2", "swiglu", "geglu"]
Pooling = Literal["last", "first", "mean"]
Head = Literal["causal_lm", "masked_lm", "pretraining", "sequence", "token", "span", "choice"]
AttentionBackend = Literal["auto", "cudnn", "flash", "flex", "efficient", "math"]
# What a sequence head predicts, as Hugging Face calls it.
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

FAMILIES: tuple[str, ...] = get_args(Family)
HEADS: tuple[str, ...] = get_args(Head)
OF_TEXT: tuple[Head, ...] = ("sequence", "choice")  # heads that read one vector of each text
GATED = ("swiglu", "geglu")  # MLPs of three matrices instead of two

# Keys of `ModelConfig` that say what a task's head predicts, and not what the trunk is.
LABEL_KEYS = ("num_labels", "id2label", "problem_type")

# Their classes drop attention weights and nothing else.
DROPS_ATTENTION_ONLY = ("llama", "qwen3")

_DECODER_HEADS = ("causal_lm", "sequence", "token", "span")
_ENCODER_HEADS = ("masked_lm", "sequence", "token", "span", "choice")
_PLAIN_MLPS = ("gelu", "gelu_tanh", "relu", "relu2")


class Traits(NamedTuple):
    """One family: `defaults` of the keys left out, and the only values that `allowed` ones take."""

    heads: tuple[str, ...]
    defaults: dict[str, Any]
    allowed: dict[str, tuple[Any, ...]]
    head_dim_is_free: bool  # and so is the number of key/value heads


# Every switch with its plain value. A family's own defaults go on top; a switch of which its class
# knows nothing is held at the value here.
_PLAIN: dict[str, Any] = {
    "causal": True,
    "norm": "layernorm",
    "norm_place": "pre",
    "norm_bias": True,
    "embedding_norm": False,
    "positions": "rotary",
    "qk_norm": False,
    "mlp": "gelu",
    "bias": True,
    "tie_embeddings": True,
    "type_vocab_size": 0,
    "logit_softcap": None,
    "pooling": "last",
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_theta_local": None,
    "rope_scaling": None,
    "sliding_window": None,
    "mup_base_width": None,
}
_ALWAYS_FREE = ("norm_eps", "tie_embeddings", "mup_base_width")


def _family(
    heads: tuple[str, ...], *, choices: dict[str, tuple[Any, ...] | None], **defaults: Any
) -> Traits:
    """`choices`: the keys that the class leaves open, None for any value."""
    own = {**_PLAIN, **defaults}
    fixed = {key: (value,) for key, value in own.items() if key not in _ALWAYS_FREE}
    fixed |= {key: values for key, values in choices.items() if values is not None}
    for key, values in choices.items():
        if values is None:
            fixed.pop(key, None)
    is_free = own["positions"] == "rotary" and own["causal"]
    return Traits(heads, own, fixed, is_free)


_ROTARY: dict[str, Any] = {"rope_theta": None, "rope_scaling": None}
_ENCODER: dict[str, Any] = {"causal": False, "embedding_norm": True, "pooling": "first"}

TRAITS: dict[str, Traits] = {
    "gpt2": _family(
        _DECODER_HEADS,
        choices={"mlp": _PLAIN_MLPS},
        positions="learned",
        mlp="gelu_tanh",
    ),
    "llama": _family(
        _DECODER_HEADS,
        choices={**_ROTARY, "bias": None, "mlp": ("swiglu", "geglu")},
        norm="rmsnorm",
        norm_bias=False,
        mlp="swiglu",
        bias=False,
        tie_embeddings=False,
    ),
    "qwen3": _family(
        _DECODER_HEADS,
        choices={**_ROTARY, "bias": None, "mlp": ("swiglu", "geglu"), "sliding_window": None},
        norm="rmsnorm",
        norm_bias=False,
        qk_norm=True,
        mlp="swiglu",
        bias=False,
        norm_eps=1e-6,
        rope_theta=1e6,
    ),
    "bert": _family(
        ("masked_lm", "pretraining", *_ENCODER_HEADS[1:]),
        choices={"mlp": _PLAIN_MLPS, "type_vocab_size": None, "tie_embeddings": (True,)},
        **_ENCODER,
        norm_place="post",
        positions="learned",
        type_vocab_size=2,
        norm_eps=1e-12,
    ),
    "roberta": _family(
        _ENCODER_HEADS,
        choices={"mlp": _PLAIN_MLPS, "type_vocab_size": None, "tie_embeddings": (True,)},
        **_ENCODER,
        norm_place="post",
        positions="learned",
        type_vocab_size=1,
    ),
    "modernbert": _family(
        _ENCODER_HEADS,
        choices={
            **_ROTARY,
            "rope_theta_local": None,
            "sliding_window": None,
            "mlp": ("geglu", "swiglu"),
            "bias": None,
            "norm_bias": None,
            "pooling": ("first", "mean"),
        },
        **_ENCODER,
        norm_bias=False,
        mlp="geglu",
        bias=False,
        rope_theta=160000.0,
        rope_theta_local=10000.0,
        sliding_window=128,
    ),
    "custom": _family(
        HEADS,
        choices=dict.fromkeys(_PLAIN),
        norm="rmsnorm",
        norm_bias=False,
        mlp="swiglu",
        bias=False,
    ),
}
