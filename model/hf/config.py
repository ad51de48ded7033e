"""config.json to `ModelConfig` and back. Imports no torch."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import FAMILIES, ModelConfig, error_line

log = logging.getLogger(__name__)

MAX_JSON_BYTES = 16 * 2**20  # a real config.json has a few kB, a real index a few MB

ARCHITECTURES = {
    ("gpt2", "causal_lm"): "GPT2LMHeadModel",
    ("gpt2", "sequence"): "GPT2ForSequenceClassification",
    ("llama", "causal_lm"): "LlamaForCausalLM",
    ("llama", "sequence"): "LlamaForSequenceClassification",
}

# Ours → theirs, for keys that carry the same value.
_SAME: dict[str, dict[str, str]] = {
    "gpt2": {
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "d_model": "n_embd",
        "d_ff": "n_inner",
        "max_seq_len": "n_positions",
        "norm_eps": "layer_norm_epsilon",
    },
    "llama": {
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "max_seq_len": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
    },
}
_SAME_EVERYWHERE = {
    "vocab_size": "vocab_size",
    "init_std": "initializer_range",
    "tie_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
_REQUIRED = {"n_layers", "n_heads", "d_model", "vocab_size"}

# What their class assumes where config.json is silent (older versions wrote fewer keys).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    "llama": {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}

# Switches that change the arithmetic: the values we compute. The first is the class's default.
_ARITHMETIC: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # one formula, two names
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
    },
    "llama": {"hidden_act": ("silu", "swish"), "partial_rotary_factor": (1.0, None)},
}
_LLAMA_EXTRA = (
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
)
_GPT2_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")

# Keys that their class reads without any effect on parameters or logits.
# fmt: off
_INERT = frozenset(
    {
        "architectures", "chunk_size_feed_forward", "do_sample", "dtype", "finetuning_task",
        "gradient_checkpointing", "id2label", "is_encoder_decoder", "label2id", "max_length",
        "model_type", "n_ctx", "num_labels", "output_attentions", "output_hidden_states",
        "output_past", "prefix", "pretraining_tp", "problem_type", "return_dict",
        "task_specific_params", "temperature", "tokenizer_class", "top_k", "top_p",
        "torch_dtype", "torchscript", "transformers_version", "use_cache"
    }
)
# fmt: on


class CheckpointError(ValueError):
    """A directory or model that cannot be read or written as asked; one line says why."""


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; refuse anything else. Raises `CheckpointError`."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path}: got {size} bytes, expected at most {MAX_JSON_BYTES}; this is no such file"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; expected a Hugging Face model directory"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: got a JSON {type(value).__name__}, expected an object")
    return value


def read_config(directory: str | Path, **overrides: Any) -> ModelConfig:
    """Read the shape of the model in a directory. Raises `CheckpointError`."""
    path = Path(directory) / "config.json"
    raw = read_json(path)
    try:
        return from_hf_config(raw, **overrides)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def from_hf_config(raw: Mapping[str, Any], **overrides: Any) -> ModelConfig:
    """Translate the content of a config.json, with `ModelConfig` keys in `overrides` on top.

    Raises `CheckpointError` for anything that would make our logits differ from Hugging Face's.
    """
    family = _supported_family(raw)
    values: dict[str, Any] = {"family": family, "bias": family == "gpt2"}
    for ours, theirs in {**_SAME_EVERYWHERE, **_SAME[family]}.items():
        if ours in _REQUIRED and raw.get(theirs) is None:
            raise CheckpointError(f"{theirs}: missing, expected a number")
        value = raw.get(theirs, _DEFAULTS[family].get(theirs))
        values[ours] = tuple(value) if isinstance(value, list) else value
    if family == "llama":
        values.update(_llama_values(raw))
        if values["d_ff"] is None:
            raise CheckpointError("intermediate_size: missing, expected a number")
    else:
        values["dropout"] = _gpt2_dropout(raw)
    values.update(_labels(raw))
    _refuse_other_arithmetic(family, raw)
    _mention_unknown_keys(family, raw)
    if "num_labels" in overrides and "id2label" not in overrides:
        values.pop("id2label", None)
    try:
        # Strict: a number in quotes is no number to transformers either.
        return ModelConfig.model_validate({**values, **overrides}, strict=True)
    except ValidationError as error:
        raise CheckpointError(error_line(error)) from None


def to_hf_config(config: ModelConfig, head: str, dtype: str) -> dict[str, Any]:
    """Return the content of config.json; `dtype` of the tensors is such as "bfloat16"."""
    family = config.family
    if (family, head) not in ARCHITECTURES:
        raise CheckpointError(f"head: got {head!r}, no Hugging Face class of {family!r} has it")
    out: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family, head]],
        "model_type": family,
        "dtype": dtype,
        "torch_dtype": dtype,  # read by transformers 4
        "use_cache": True,
    }
    for ours, theirs in {**_SAME_EVERYWHERE, **_SAME[family]}.items():
        value = getattr(config, ours)
        out[theirs] = list(value) if isinstance(value, tuple) else value
    out.update({key: allowed[0] for key, allowed in _ARITHMETIC[family].items()})
    if family == "gpt2":
        out.update(dict.fromkeys(_GPT2_DROPOUTS, config.dropout))
    else:
        out.pop("partial_rotary_factor")
        out["attention_dropout"] = config.dropout
        out["attention_bias"] = out["mlp_bias"] = config.bias
        out["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
        out["rope_theta"] = config.rope_theta  # read by transformers 4
    if head == "sequence":
        names = config.id2label or {i: f"LABEL_{i}" for i in range(config.num_labels)}
        out["id2label"] = {str(i): name for i, name in sorted(names.items())}
        out["label2id"] = {name: i for i, name in sorted(names.items())}
    return out


def to_generation_config(config: ModelConfig) -> dict[str, Any]:
    """Return the content of generation_config.json."""
    eos = config.eos_token_id
    out = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
        "use_cache": True,
    }
    return {key: value for key, value in out.items() if value is not None}


def _supported_family(raw: Mapping[str, Any]) -> str:
    family = raw.get("model_type")
    if "auto_map" in raw:
        raise CheckpointError(
            "auto_map: this model runs code from its own directory, which is never executed here;"
            f" supported without code: {', '.join(FAMILIES)}"
        )
    if family not in FAMILIES:
        raise CheckpointError(f"model_type: got {family!r}, supported: {', '.join(FAMILIES)}")
    if raw.get("quantization_config"):
        raise CheckpointError(
            "quantization_config: quantised weights are not supported; use the unquantised model"
        )
    return str(family)


def _refuse_other_arithmetic(family: str, raw: Mapping[str, Any]) -> None:
    loss = {"problem_type": ("single_label_classification", None)}
    for key, allowed in {**_ARITHMETIC[family], **loss}.items():
        value = raw.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(f"{key}: got {value!r}, supported: {allowed[0]!r}")


def _llama_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    attention_bias, mlp_bias = raw.get("attention_bias", False), raw.get("mlp_bias", False)
    if attention_bias != mlp_bias:
        raise CheckpointError(
            f"attention_bias, mlp_bias: got {attention_bias} and {mlp_bias}, supported: both or"
            " neither"
        )
    theta = raw.get("rope_theta")
    # transformers 5 keeps the base in rope_parameters, 4 beside rope_scaling.
    for key in ("rope_scaling", "rope_parameters"):
        rope = _object(raw, key)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise CheckpointError(f"{key}: got type {kind!r}, supported: 'default'")
        unknown = sorted(set(rope) - {"rope_type", "type", "rope_theta"})
        if unknown:
            raise CheckpointError(f"{key}: got {', '.join(unknown)}, supported: rope_theta alone")
        theta = rope.get("rope_theta", theta)
    return {
        "bias": attention_bias,
        "dropout": raw.get("attention_dropout", 0.0),
        "rope_theta": 10000.0 if theta is None else theta,
    }


def _gpt2_dropout(raw: Mapping[str, Any]) -> Any:
    rates = {key: raw.get(key, 0.1) for key in _GPT2_DROPOUTS}
    if len(set(rates.values())) > 1:
        raise CheckpointError(
            f"{', '.join(rates)}: got {', '.join(map(str, rates.values()))}, supported: one rate"
            " for all; they affect training alone, so set them equal in config.json"
        )
    return rates["resid_pdrop"]


def _labels(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = _object(raw, "id2label")
    if not all(str(number).isdecimal() for number in given):
        raise CheckpointError(f"id2label: got {given!r}, expected numbers as keys")
    names = {int(number): name for number, name in given.items()}
    if not names:
        return {"num_labels": raw.get("num_labels", 2)}
    if all(name == f"LABEL_{i}" for i, name in names.items()):
        return {"num_labels": len(names)}
    return {"num_labels": len(names), "id2label": names}


def _object(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{key}: got {value!r}, expected an object")
    return value or {}


def _mention_unknown_keys(family: str, raw: Mapping[str, Any]) -> None:
    known = {*_SAME_EVERYWHERE.values(), *_SAME[family].values(), *_ARITHMETIC[family], *_INERT}
    known.update(_GPT2_DROPOUTS if family == "gpt2" else _LLAMA_EXTRA)
    unknown = [key for key in raw if key not in known and not key.startswith(("_", "summary_"))]
    if unknown:
        # Their class ignores them too, so the logits still agree.
        log.warning("config.json: ignored keys unknown to %s: %s", family, ", ".join(unknown))
