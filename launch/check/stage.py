"""Which stage a config is of, from its keys. Torch-free."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.config import DataPrepConfig
from finetune.config import FinetuneConfig
from finetune.multitask.config import MultitaskConfig
from pretrain.config import PretrainConfig
from runtime.config import Config, read_tree, rows

STAGES: dict[str, type[Config]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "multitask": MultitaskConfig,
    "data_prep": DataPrepConfig,
}


def stage_of(path: Path, overrides: Sequence[str]) -> str:
    """The stage that knows most of the config's keys; pretraining where several do.

    Raises ConfigError where the file cannot be read.
    """
    given = read_tree(path, overrides)
    scores = {}
    for stage, schema in STAGES.items():
        known = {row.key for row in rows(schema)} | set(schema.model_fields)
        scores[stage] = sum(_counts(key, value, known) for key, value in given.items())
    return max(scores, key=lambda stage: scores[stage])


def _counts(key: str, value: object, known: set[str]) -> float:
    """How well a top-level key fits a schema: itself, and the keys below it."""
    if key not in known:
        return -1.0
    if not isinstance(value, dict):
        # A section is not a value: `model: DIR` is fine-tuning's, `model: {…}` is not.
        return -1.0 if any(other.startswith(f"{key}.") for other in known) else 1.0
    below = [f"{key}.{name}" for name in value]
    return 0.5 + sum(name in known for name in below) / max(1, len(below))
