"""config.json to `ModelConfig` and back. Imports no torch."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from model.config import FAMILIES, LABEL_KEYS, ModelConfig, error_line
from model.families import ProblemType
from model.hf.errors import CheckpointError
from model.hf.families import ARCHITECTURES, INERT, KEYS, read_activation, write_activation
from model.hf.rope import as_object

__all__ = ["ARCHITECTURES", "CheckpointError", "from_hf_config", "read_config", "to_hf_config"]

log = logging.getLogger(__name__)

MAX_JSON_BYTES = 16 * 2**20  # a real config.json has a few kB, a real index a few MB
CUSTOM_TYPE = "ingot"  # model_type of what no class of transformers computes

_SAME_EVERYWHERE = {
    "vocab_size": "vocab_size",
    "init_std": "initializer_range",
    "tie_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
_REQUIRED = {"n_layers", "n_heads", "d_model", "vocab_size"}


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


def is_plain_name(name: str, suffix: str) -> bool:
    """Whether a file name that a file mentions is one: a path in it could point elsewhere."""
    is_short = len(name.encode("utf-8", "replace")) <= 255
    return is_short and name.isprintable() and Path(name).name == name and name.endswith(suffix)


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
    values = _read_custom(raw) if family == "custom" else _read_family(family, raw)
    if not overrides.keys().isdisjoint(("num_labels", "id2label")):
        for key in LABEL_KEYS:  # the file's are of another head
            values.pop(key, None)
    try:
        # Strict: a number in quotes is no number to transformers either.
        return ModelConfig.model_validate({**values, **overrides}, strict=family != "custom")
    except ValidationError as error:
        raise CheckpointError(error_line(error)) from None


def _read_family(family: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    keys, values = KEYS[family], dict[str, Any](family=family)
    for ours, theirs in {**_SAME_EVERYWHERE, **keys.same}.items():
        if ours in _REQUIRED and raw.get(theirs) is None:
            raise CheckpointError(f"{theirs}: missing, expected a number")
        value = raw.get(theirs, keys.defaults.get(theirs))
        values[ours] = tuple(value) if isinstance(value, list) else value
    if values["d_ff"] is None and family != "gpt2":
        raise CheckpointError("intermediate_size: missing, expected a number")
    name = raw.get(keys.activation, keys.defaults[keys.activation])
    gated = family in ("llama", "qwen3", "modernbert")
    values["mlp"] = read_activation(name, gated=gated, key=keys.activation)
    values["dropout"] = _read_dropout(raw, keys.dropouts)
    values.update(keys.read(raw))
    values.update(_labels(raw))
    _refuse_other_arithmetic(family, raw)
    _mention_unknown_keys(family, raw)
    return values


def _read_custom(raw: Mapping[str, Any]) -> dict[str, Any]:
    known = set(ModelConfig.model_fields)
    values = {key: value for key, value in raw.items() if key in known and key != "family"}
    return {**values, "family": "custom"}


def to_hf_config(config: ModelConfig, head: str, dtype: str) -> dict[str, Any]:
    """Return the content of config.json; `dtype` of the tensors is such as "bfloat16"."""
    family = config.family
    if family == "custom":
        shape = config.model_dump(mode="json", exclude={"family", "vocab_multiple"})
        return {"model_type": CUSTOM_TYPE, "dtype": dtype, "head": head, **shape}
    if (family, head) not in ARCHITECTURES:
        raise CheckpointError(f"head: got {head!r}, no Hugging Face class of {family!r} has it")
    keys = KEYS[family]
    out: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family, head]],
        "model_type": family,
        "dtype": dtype,
        "torch_dtype": dtype,  # read by transformers 4
        keys.activation: write_activation(config.mlp),
    }
    if config.causal:
        out["use_cache"] = True
    for ours, theirs in {**_SAME_EVERYWHERE, **keys.same}.items():
        value = getattr(config, ours)
        out[theirs] = list(value) if isinstance(value, tuple) else value
    out.update({key: allowed[0] for key, allowed in keys.arithmetic.items()})
    out.pop("partial_rotary_factor", None)
    out.pop("position_embedding_type", None)
    out.update(dict.fromkeys(keys.dropouts, config.dropout))
    out.update(keys.write(config))
    if head in ("sequence", "token"):
        names = config.id2label or {i: f"LABEL_{i}" for i in range(config.num_labels)}
        out["id2label"] = {str(i): name for i, name in sorted(names.items())}
        out["label2id"] = {name: i for i, name in sorted(names.items())}
    if head == "sequence" and config.problem_type is not None:
        out["problem_type"] = config.problem_type
    return out


def read_ends(directory: str | Path) -> tuple[int, ...] | None:
    """The tokens that end a text by generation_config.json, or None where it says nothing.

    Chat models have several there, of which config.json names one. Raises `CheckpointError`.
    """
    path = Path(directory) / "generation_config.json"
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    if ends is None:
        return None
    ends = ends if isinstance(ends, list) else [ends]
    if not all(type(end) is int and end >= 0 for end in ends):
        raise CheckpointError(f"{path}: eos_token_id: got {ends!r}, expected numbers of tokens")
    return tuple(ends)


def to_generation_config(config: ModelConfig) -> dict[str, Any] | None:
    """Return the content of generation_config.json, or None for a model that cannot generate."""
    if not config.causal:
        return None
    eos = config.eos_token_id
    out = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
        "use_cache": True,
    }
    return {key: value for key, value in out.items() if value is not None}


def _supported_family(raw: Mapping[str, Any]) -> str:
    kind = raw.get("model_type")
    supported = ", ".join(family for family in FAMILIES if family != "custom")
    if "auto_map" in raw:
        raise CheckpointError(
            "auto_map: this model runs code from its own directory, which is never executed here;"
            f" supported without code: {supported}"
        )
    if kind == CUSTOM_TYPE:
        return "custom"
    if not isinstance(kind, str) or kind not in KEYS:
        raise CheckpointError(f"model_type: got {kind!r}, supported: {supported}")
    if raw.get("quantization_config"):
        raise CheckpointError(
            "quantization_config: quantised weights are not supported; use the unquantised model"
        )
    return kind


def _refuse_other_arithmetic(family: str, raw: Mapping[str, Any]) -> None:
    for key, allowed in KEYS[family].arithmetic.items():
        value = raw.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(f"{key}: got {value!r}, supported: {allowed[0]!r}")


def _read_dropout(raw: Mapping[str, Any], defaults: dict[str, float]) -> Any:
    rates = {key: raw.get(key, default) for key, default in defaults.items()}
    first, *others = rates.values()
    if any(other != first for other in others):
        raise CheckpointError(
            f"{', '.join(rates)}: got {', '.join(map(str, rates.values()))}, supported: one rate"
            " for all; they affect training alone, so set them equal in config.json"
        )
    return float(first) if isinstance(first, int) else first


def _labels(raw: Mapping[str, Any]) -> dict[str, Any]:
    problem = raw.get("problem_type")
    if problem not in (*get_args(ProblemType), None):
        raise CheckpointError(
            f"problem_type: got {problem!r}, supported: {', '.join(get_args(ProblemType))}"
        )
    return {**_classes(raw), "problem_type": problem}


def _classes(raw: Mapping[str, Any]) -> dict[str, Any]:
    given = as_object(raw, "id2label")
    if not all(str(number).isdecimal() for number in given):
        raise CheckpointError(f"id2label: got {given!r}, expected numbers as keys")
    names = {int(number): name for number, name in given.items()}
    if not names:
        return {"num_labels": raw.get("num_labels", 2)}
    if all(name == f"LABEL_{i}" for i, name in names.items()):
        return {"num_labels": len(names)}
    return {"num_labels": len(names), "id2label": names}


def _mention_unknown_keys(family: str, raw: Mapping[str, Any]) -> None:
    keys = KEYS[family]
    known = {*_SAME_EVERYWHERE.values(), *keys.same.values(), *keys.arithmetic, *INERT}
    known |= {*keys.dropouts, *keys.also, keys.activation}
    unknown = [key for key in raw if key not in known and not key.startswith(("_", "summary_"))]
    if unknown:
        # Their class ignores them too, so the logits still agree.
        told = (key if key.isidentifier() and len(key) < 80 else repr(key[:80]) for key in unknown)
        log.warning("config.json: ignored keys unknown to %s: %s", family, ", ".join(told))
