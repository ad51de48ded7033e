"""What is to be trained: a preset, a pretraining config, or a model directory. Imports no torch."""

import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from data_prep.shards import Shards
from model.config import LABEL_KEYS, ModelConfig, error_line
from model.describe import MASKED_FRACTION
from model.hf.config import CheckpointError, read_config
from model.presets import PRESETS, preset
from pretrain.config import PretrainConfig
from pretrain.objectives.traits import TRAITS
from pretrain.sections import Objective, RampStage
from runtime.config import load
from runtime.errors import EXIT_BAD_INPUT, UserError

_USUAL_SEQ_LEN = 8192  # of pretraining; longer contexts are taught at its end
_FROM_DATA = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
_NOT_IN_NAMES = re.compile(r"[^\w.-]")


class Subject(NamedTuple):
    """A model to train, and what was written about its run already."""

    name: str
    model: ModelConfig
    head: str
    predicted_fraction: float
    seq_len: int
    settings: dict[str, Any]  # of a pretraining config, as written
    global_batch_size: int | None = None
    tokens: int | None = None
    optimizer: str = "adamw"
    ramp: tuple[RampStage, ...] = ()  # smaller batches at first


def find_subject(name: str, data: str | None) -> Subject:
    """Read what MODEL names. Raises UserError (status 2).

    data: a prepared directory; where it exists its tokenizer decides the vocabulary.
    """
    path = Path(name)
    if path.is_file():
        return _of_config(path, data)
    if path.is_dir():
        return _of_directory(path, data)
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"no preset, config or model directory {name[:80]!r}{hint} (presets: "
            f"{', '.join(PRESETS)})",
            status=EXIT_BAD_INPUT,
        )
    return _of_shape(name, preset(name), {"preset": name}, data)


def _of_config(path: Path, data: str | None) -> Subject:
    config = load(PretrainConfig, path)
    settings = _written(config)
    if data:
        settings.setdefault("data", {})["train"] = data
        config = PretrainConfig.model_validate(settings)
    try:
        shards = _shards(config.data.sources[0].path)
        given = {k: v for k, v in config.model.model_dump().items() if v is not None}
        base = given.pop("preset", None)
        if shards is not None:
            model = config.model_config_for(shards)
        else:
            model = preset(base, **given) if base else ModelConfig(**given)
    except pydantic.ValidationError as error:
        raise UserError(f"{path}: model: {error_line(error)}", status=EXIT_BAD_INPUT) from None
    except ValueError as error:
        raise UserError(f"{path}: model: {error}", status=EXIT_BAD_INPUT) from None
    traits = TRAITS[config.objective]
    return Subject(
        config.run.name,
        model,
        traits.head,
        config.masking.fraction if traits.is_masked else 1.0,
        config.data.seq_len,
        settings,
        config.batch.global_batch_size,
        config.tokens or config.positions(config.steps or 0),
        config.optim.name,
        config.batch.ramp,
    )


def _written(config: PretrainConfig) -> dict[str, Any]:
    """The keys of a config that are not at their defaults."""
    return different(config.model_dump(mode="json"), _DEFAULTS)


def different(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings that a person has to write, section by section."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            if inner := different(value, default):
                found[name] = inner
        elif value != default:
            found[name] = value
    return found


_DEFAULTS = PretrainConfig(steps=1).model_dump(mode="json") | {"steps": None}


def _of_directory(path: Path, data: str | None) -> Subject:
    try:
        model = read_config(path)
    except CheckpointError as error:
        raise UserError(str(error), status=EXIT_BAD_INPUT) from None
    shape = {
        name: value
        for name, value in model.model_dump(mode="json").items()
        if value is not None and name not in _FROM_DATA.union(LABEL_KEYS)
    }
    return _of_shape(path.resolve().name, model, {"preset": None, **shape}, data)


def _of_shape(name: str, model: ModelConfig, shape: dict[str, Any], data: str | None) -> Subject:
    objective: Objective = "causal_lm" if model.causal else "masked_lm"
    settings: dict[str, Any] = {
        "run": {"name": _NOT_IN_NAMES.sub("-", name).lstrip(".-")[:100] or "run"},
        "model": shape,
        "data": {"train": data or f"runs/{name}/data"},
        "objective": objective,
    }
    shards = _shards(data) if data else None
    if shards is not None:
        config = PretrainConfig.model_validate({**settings, "steps": 1})
        model = config.model_config_for(shards)
    fraction = 1.0 if model.causal else MASKED_FRACTION
    seq_len = min(model.max_seq_len, _USUAL_SEQ_LEN)
    return Subject(name, model, TRAITS[objective].head, fraction, seq_len, settings)


def _shards(directory: str) -> Shards | None:
    """The prepared data, if it is there."""
    return Shards(directory, "train") if Path(directory).is_dir() else None
