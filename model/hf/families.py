"""config.json of each family: which key carries what, and what it must not say. No torch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from model.config import MAX_LAYERS, MAX_SIZE, ModelConfig
from model.hf import rope
from model.hf.errors import CheckpointError

Raw = Mapping[str, Any]


class Keys(NamedTuple):
    """One family's config.json."""

    same: dict[str, str]  # ours → theirs, for keys that carry the same value
    defaults: dict[str, Any]  # what their class assumes where the file is silent
    arithmetic: dict[str, tuple[Any, ...]]  # switches of theirs: the values that we compute
    activation: str  # their key of the MLP's activation
    dropouts: dict[str, float]  # their rates, one for us, and the class's defaults
    read: Callable[[Raw], dict[str, Any]]  # everything else, theirs to ours
    write: Callable[[ModelConfig], dict[str, Any]]  # and ours to theirs
    also: tuple[str, ...] = ()  # further keys that `read` looks at


_ENCODER = {"masked_lm": "ForMaskedLM", "choice": "ForMultipleChoice"}
ARCHITECTURES = {
    (family, head): f"{stem}{suffix}"
    for family, stem, suffixes in (
        ("gpt2", "GPT2", {"causal_lm": "LMHeadModel"}),
        ("llama", "Llama", {"causal_lm": "ForCausalLM"}),
        ("qwen3", "Qwen3", {"causal_lm": "ForCausalLM"}),
        ("bert", "Bert", {**_ENCODER, "pretraining": "ForPreTraining"}),
        ("roberta", "Roberta", _ENCODER),
        ("modernbert", "ModernBert", _ENCODER),
    )
    for head, suffix in {
        **suffixes,
        "sequence": "ForSequenceClassification",
        "token": "ForTokenClassification",
        "span": "ForQuestionAnswering",
    }.items()
}

# Names of activations, theirs to ours; the first of a meaning is the one that we write.
_PLAIN = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
_GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}


def read_activation(name: Any, *, gated: bool, key: str) -> str:
    """Translate the name of an activation. Raises `CheckpointError`."""
    names = _GATED if gated else _PLAIN
    if not isinstance(name, str) or name not in names:
        raise CheckpointError(f"{key}: got {name!r}, supported: {', '.join(names)}")
    return names[name]


def write_activation(mlp: str) -> str:
    """Return their name of an MLP's activation."""
    pairs = (*_PLAIN.items(), *_GATED.items())
    return next(theirs for theirs, ours in pairs if ours == mlp)


def _layer_types(config: ModelConfig) -> list[str]:
    every = range(config.n_layers)
    return ["sliding_attention" if i in config.sliding_layers else "full_attention" for i in every]


def _sliding_layers(types: Any, key: str = "layer_types") -> tuple[int, ...]:
    known = ("sliding_attention", "full_attention")
    if not isinstance(types, list) or not all(kind in known for kind in types):
        raise CheckpointError(f"{key}: got {types!r}, expected a list of {', '.join(known)}")
    return tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")


def _number(raw: Raw, key: str, default: int, *, least: int = 0, most: int = MAX_SIZE) -> int:
    value = raw.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(f"{key}: got {value!r}, expected a number from {least} to {most}")
    return value


def _layers(raw: Raw) -> int:
    return _number(raw, "num_hidden_layers", 0, most=MAX_LAYERS)


def _read_gpt2(_: Raw) -> dict[str, Any]:
    return {"bias": True}


def _write_gpt2(_: ModelConfig) -> dict[str, Any]:
    return {}


def _read_llama(raw: Raw) -> dict[str, Any]:
    return {
        "bias": raw.get("attention_bias", False),
        "mlp_bias": raw.get("mlp_bias", False),
        **rope.read(raw),
    }


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "attention_bias": config.bias,
        "mlp_bias": config.mlp_bias,
        **rope.write(config),
    }


def _read_qwen3(raw: Raw) -> dict[str, Any]:
    found = {"bias": raw.get("attention_bias", False), **rope.read(raw)}
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window", False) else None
    types = raw.get("layer_types")
    if window is None:
        if types is not None and _sliding_layers(types):
            raise CheckpointError(
                "layer_types: got sliding layers, but use_sliding_window is false"
            )
        return found
    if types is not None:
        layers = _sliding_layers(types)
    else:
        layers = tuple(range(_number(raw, "max_window_layers", 28), _layers(raw)))
    return found | ({"sliding_window": window, "sliding_layers": layers} if layers else {})


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    first = min(config.sliding_layers, default=config.n_layers)
    return {
        "attention_bias": config.bias,
        "use_sliding_window": bool(config.sliding_layers),
        "sliding_window": config.sliding_window if config.sliding_layers else None,
        "max_window_layers": first,
        "layer_types": _layer_types(config),
        **rope.write(config),
    }


def _read_bert(_: Raw) -> dict[str, Any]:
    return {"bias": True}


def _write_bert(_: ModelConfig) -> dict[str, Any]:
    return {}


def _read_roberta(raw: Raw) -> dict[str, Any]:
    pad, rows = raw.get("pad_token_id", 1), raw.get("max_position_embeddings", 512)
    if not isinstance(pad, int) or not isinstance(rows, int):
        raise CheckpointError("pad_token_id, max_position_embeddings: expected numbers")
    return {"bias": True, "max_seq_len": rows - pad - 1}


def _write_roberta(config: ModelConfig) -> dict[str, Any]:
    # Their positions count from the padding id: the first rows of the table are never used.
    return {"max_position_embeddings": config.max_seq_len + config.position_offset}


def _read_modernbert(raw: Raw) -> dict[str, Any]:
    if raw.get("layer_types") is not None:
        layers = _sliding_layers(raw["layer_types"])
    else:
        every = _number(raw, "global_attn_every_n_layers", 3, least=1)
        layers = tuple(i for i in range(_layers(raw)) if i % every)
    pooling = raw.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise CheckpointError(f"classifier_pooling: got {pooling!r}, supported: 'cls', 'mean'")
    return {
        "bias": raw.get("attention_bias", False),
        "mlp_bias": raw.get("mlp_bias", False),
        "norm_bias": raw.get("norm_bias", False),
        "pooling": "first" if pooling == "cls" else "mean",
        "sliding_layers": layers,
        **rope.read_by_layer_type(raw),
    }


def _write_modernbert(config: ModelConfig) -> dict[str, Any]:
    return {
        "attention_bias": config.bias,
        "mlp_bias": config.mlp_bias,
        "norm_bias": config.norm_bias,
        "classifier_pooling": "cls" if config.pooling == "first" else "mean",
        "layer_types": _layer_types(config),
        "cls_token_id": config.bos_token_id,
        "sep_token_id": config.eos_token_id,
        **rope.write_by_layer_type(config),
    }


_USUAL = {
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
}
_LLAMA_SAME = {
    **_USUAL,
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}
_BERT_SAME = {
    **_USUAL,
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
    "type_vocab_size": "type_vocab_size",
}
_BERT_DEFAULTS: dict[str, Any] = {
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "hidden_act": "gelu",
}
_BERT_ARITHMETIC: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute", None),
}
_BERT_DROPOUTS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}

KEYS: dict[str, Keys] = {
    "gpt2": Keys(
        same={
            "n_layers": "n_layer",
            "n_heads": "n_head",
            "d_model": "n_embd",
            "d_ff": "n_inner",
            "max_seq_len": "n_positions",
            "norm_eps": "layer_norm_epsilon",
        },
        defaults={
            "n_positions": 1024,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": 50256,
            "eos_token_id": 50256,
            "activation_function": "gelu_new",
        },
        arithmetic={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
            "add_cross_attention": (False,),
        },
        activation="activation_function",
        dropouts={"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
        read=_read_gpt2,
        write=_write_gpt2,
    ),
    "llama": Keys(
        same=_LLAMA_SAME,
        defaults={
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
        },
        arithmetic={"partial_rotary_factor": (1.0, None)},
        activation="hidden_act",
        dropouts={"attention_dropout": 0.0},
        read=_read_llama,
        write=_write_llama,
        also=("attention_bias", "mlp_bias", *rope.KEYS),
    ),
    "qwen3": Keys(
        same=_LLAMA_SAME,
        defaults={
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "head_dim": 128,
            "hidden_act": "silu",
        },
        arithmetic={"partial_rotary_factor": (1.0, None)},
        activation="hidden_act",
        dropouts={"attention_dropout": 0.0},
        read=_read_qwen3,
        write=_write_qwen3,
        also=(
            *("attention_bias", "use_sliding_window", "sliding_window", "max_window_layers"),
            *("layer_types", *rope.KEYS),
        ),
    ),
    "bert": Keys(
        same=_BERT_SAME,
        defaults=_BERT_DEFAULTS,
        arithmetic=_BERT_ARITHMETIC,
        activation="hidden_act",
        dropouts=_BERT_DROPOUTS,
        read=_read_bert,
        write=_write_bert,
    ),
    "roberta": Keys(
        same={ours: theirs for ours, theirs in _BERT_SAME.items() if ours != "max_seq_len"},
        defaults={**_BERT_DEFAULTS, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        arithmetic=_BERT_ARITHMETIC,
        activation="hidden_act",
        dropouts=_BERT_DROPOUTS,
        read=_read_roberta,
        write=_write_roberta,
        also=("max_position_embeddings",),
    ),
    "modernbert": Keys(
        same={
            **_USUAL,
            "max_seq_len": "max_position_embeddings",
            "norm_eps": "norm_eps",
            "sliding_window": "local_attention",
        },
        defaults={
            "intermediate_size": 1152,
            "max_position_embeddings": 8192,
            "norm_eps": 1e-5,
            "local_attention": 128,
            "tie_word_embeddings": True,
            "pad_token_id": 50283,
            "bos_token_id": 50281,
            "eos_token_id": 50282,
            "hidden_activation": "gelu",
        },
        arithmetic={
            "decoder_bias": (True,),
            "classifier_bias": (False,),
            "classifier_activation": ("gelu",),
            "sparse_prediction": (False, True),  # their saving of ours, without effect on logits
        },
        activation="hidden_activation",
        dropouts={"attention_dropout": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0},
        read=_read_modernbert,
        write=_write_modernbert,
        also=(
            *("attention_bias", "mlp_bias", "norm_bias", "classifier_pooling", "layer_types"),
            *("global_attn_every_n_layers", "cls_token_id", "sep_token_id", *rope.KEYS),
            *("layer_norm_eps", "position_embedding_type"),  # released, and never read
        ),
    ),
}

# Keys that their classes read without any effect on parameters or logits.
# fmt: off
INERT = frozenset(
    {
        "architectures", "chunk_size_feed_forward", "classifier_dropout",
        "deterministic_flash_attn", "directionality", "do_sample", "dtype", "embedding_size",
        "finetuning_task",
        "gradient_checkpointing", "id2label", "initializer_cutoff_factor", "is_encoder_decoder",
        "label2id", "max_length", "model_type", "n_ctx", "num_labels", "output_attentions",
        "output_hidden_states", "output_past", "pooler_fc_size", "pooler_num_attention_heads",
        "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "prefix", "pretraining_tp",
        "problem_type", "reference_compile", "repad_logits_with_grad", "return_dict",
        "sparse_pred_ignore_index", "task_specific_params", "temperature", "tokenizer_class",
        "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version", "use_cache",
    }
)
# fmt: on
