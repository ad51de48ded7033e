"""Rotary positions in config.json: transformers 5's `rope_parameters`, 4's `rope_scaling`."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from model.config import ModelConfig, RopeScaling, error_line
from model.hf.errors import CheckpointError

Raw = Mapping[str, Any]
KEYS = (
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "original_max_position_embeddings",
    "global_rope_theta",
    "local_rope_theta",
)
_FULL, _SLIDING = "full_attention", "sliding_attention"
# Ours → theirs, for each kind of scaling.
_SCALING = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_seq_len": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_max_seq_len": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    },
}


def read(raw: Raw) -> dict[str, Any]:
    """Return rope_theta and rope_scaling of ours. Raises `CheckpointError`."""
    found = {"rope_theta": 10000.0}
    if raw.get("rope_theta") is not None:
        found["rope_theta"] = raw["rope_theta"]
    for key in ("rope_parameters", "rope_scaling"):
        found |= _read_object(as_object(raw, key), key, raw)
    return found


def read_by_layer_type(raw: Raw) -> dict[str, Any]:
    """The same, and rope_theta_local, where each type of layer has its own."""
    given = as_object(raw, "rope_parameters")
    unknown = set(given) - {_FULL, _SLIDING}
    if unknown:
        raise CheckpointError(
            f"rope_parameters: got {', '.join(sorted(unknown))}, supported: {_FULL}, {_SLIDING}"
        )
    found: dict[str, Any] = {
        "rope_theta": raw.get("global_rope_theta", 160000.0),
        "rope_theta_local": raw.get("local_rope_theta", 10000.0),
    }
    by_type = {
        kind: _read_object(as_object(given, kind), f"rope_parameters.{kind}", raw)
        for kind in (_FULL, _SLIDING)
    }
    if by_type[_FULL].get("rope_scaling") != by_type[_SLIDING].get("rope_scaling"):
        raise CheckpointError("rope_parameters: got two scalings, supported: one for all layers")
    found |= by_type[_FULL]
    if "rope_theta" in by_type[_SLIDING]:
        found["rope_theta_local"] = by_type[_SLIDING]["rope_theta"]
    return found | _read_object(as_object(raw, "rope_scaling"), "rope_scaling", raw)


def write(config: ModelConfig) -> dict[str, Any]:
    """Return what both versions of transformers read."""
    out: dict[str, Any] = {
        "rope_parameters": _write_object(config, config.rope_theta),
        "rope_theta": config.rope_theta,  # read by transformers 4
    }
    if config.rope_scaling is not None:
        out["rope_scaling"] = out["rope_parameters"]
    return out


def write_by_layer_type(config: ModelConfig) -> dict[str, Any]:
    """The same, each type of layer on its own."""
    local = config.rope_theta_local or config.rope_theta
    return {
        "rope_parameters": {
            _FULL: _write_object(config, config.rope_theta),
            _SLIDING: _write_object(config, local),
        },
        "global_rope_theta": config.rope_theta,  # read by transformers 4
        "local_rope_theta": local,
    }


def as_object(raw: Raw, key: str) -> dict[str, Any]:
    """A key's JSON object, empty where it is missing. Raises `CheckpointError`."""
    value = raw.get(key)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{key}: got {value!r}, expected an object")
    return value or {}


def _read_object(rope: dict[str, Any], key: str, raw: Raw) -> dict[str, Any]:
    found = {} if rope.get("rope_theta") is None else {"rope_theta": rope["rope_theta"]}
    kind = rope.get("rope_type", rope.get("type", "default"))
    names = _SCALING.get(kind, {}) if isinstance(kind, str) else {}
    unknown = set(rope) - {"rope_type", "type", "rope_theta", *names.values()}
    if rope.get("partial_rotary_factor") in (1.0, None) and rope.get("truncate") in (True, None):
        unknown -= {"partial_rotary_factor", "truncate"}
    if kind != "default" and not names:
        supported = ", ".join(("default", *_SCALING))
        raise CheckpointError(f"{key}: got type {kind!r}, supported: {supported}")
    if unknown:
        known = ", ".join(("rope_theta", *names.values()))
        raise CheckpointError(f"{key}: got {', '.join(sorted(unknown))}, supported: {known}")
    if kind == "default":
        return found
    values = {ours: rope[theirs] for ours, theirs in names.items() if rope.get(theirs) is not None}
    if "original_max_seq_len" in names:
        fallback = raw.get("original_max_position_embeddings", raw.get("max_position_embeddings"))
        values.setdefault("original_max_seq_len", fallback)
    try:
        scaling = RopeScaling.model_validate({"kind": kind, **values}, strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{key}: {error_line(error)}") from None
    return {**found, "rope_scaling": scaling}


def _write_object(config: ModelConfig, theta: float) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    names = _SCALING[scaling.kind]
    values = {theirs: getattr(scaling, ours) for ours, theirs in names.items()}
    given = {theirs: value for theirs, value in values.items() if value is not None}
    return {"rope_type": scaling.kind, "rope_theta": theta, **given}
