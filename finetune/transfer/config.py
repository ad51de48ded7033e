"""The config section that says how much of the checkpoint is reused, and its checks. Torch-free."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from model.config import ModelConfig
from runtime.config import Config, Problem, key

Strategy = Literal["full", "head", "partial", "architecture", "auto"]


class Transfer(Config):
    """How much of the checkpoint is reused."""

    strategy: Strategy = key(
        "full",
        "full: every weight is trained, from the checkpoint's. head: the trunk stays as it is. "
        "partial: the embeddings and the first freeze_layers layers do. architecture: the same "
        "shape with fresh weights. auto: one of these, by the number of examples and the "
        "checkpoint's own loss on them",
    )
    freeze_layers: int | None = key(
        None, "partial: layers that stay, from the first; none = half of them", unit="layers", ge=0
    )
    reinit_layers: int = key(
        0, "Top layers (and a pooler) that start from fresh weights", unit="layers", ge=0
    )
    layer_decay: float = key(
        1.0, "Learning rate of each layer ÷ that of the layer above it; 1 = all alike", gt=0, le=1
    )
    unfreeze_every_steps: int = key(
        0,
        "Gradual unfreezing: the head alone, then one layer more, from the top, every so many "
        "steps, the embeddings last; 0 = all at once",
        unit="steps",
        ge=0,
    )
    reference: str | None = key(
        None,
        "auto: shards of data_prep, or a text file, of what the checkpoint was pretrained on, to "
        "compare vocabularies with; none = the shards of its run, where they still are",
    )

    def frozen_layers(self, n_layers: int) -> int:
        """Count the layers that `partial` keeps."""
        return n_layers // 2 if self.freeze_layers is None else self.freeze_layers


def check_transfer(transfer: Transfer, shape: ModelConfig, head: str) -> Iterator[Problem]:
    """The settings that don't go together, or not with the model; head: of the task."""
    strategy, n_layers = transfer.strategy, shape.n_layers
    if transfer.freeze_layers is not None and strategy != "partial":
        yield Problem(
            "transfer.freeze_layers",
            f"is of transfer.strategy: partial, got {strategy!r}; choose that, or remove the key",
        )
    for name, several in (("freeze_layers", transfer.freeze_layers or 0),
                          ("reinit_layers", transfer.reinit_layers)):  # fmt: skip
        if several > n_layers:
            yield Problem(
                f"transfer.{name}",
                f"{several} is more than the model's {n_layers} layers; write {n_layers} or less",
            )
    yield from _check_pairs(transfer, n_layers)
    if strategy == "head" and head == "causal_lm" and shape.tie_embeddings:
        yield Problem(
            "transfer.strategy",
            "head leaves nothing to train: this model's output matrix is its embedding; choose "
            "partial or full",
        )
    if transfer.reference is not None and strategy != "auto":
        yield Problem(
            "transfer.reference",
            f"is of transfer.strategy: auto, got {strategy!r}; choose that, or remove the key",
        )
    elif transfer.reference is not None and not Path(transfer.reference).exists():
        yield Problem("transfer.reference", f"{transfer.reference}: no such file or directory")


def _check_pairs(transfer: Transfer, n_layers: int) -> Iterator[Problem]:
    strategy = transfer.strategy
    why = {
        "head": "trains no layer",
        "auto": "chooses the layers itself",
        "architecture": "starts every layer from fresh weights",
    }.get(strategy)
    if transfer.reinit_layers and why is not None:
        yield Problem(
            "transfer.reinit_layers",
            f"transfer.strategy: {strategy} {why}; write 0, or choose full or partial",
        )
    kept = transfer.frozen_layers(n_layers)
    if strategy == "partial" and kept <= n_layers < kept + transfer.reinit_layers:
        yield Problem(
            "transfer.reinit_layers",
            f"{transfer.reinit_layers} layers from the top and {kept} that stay are more than the "
            f"model's {n_layers}; write {n_layers - kept} or less",
        )
    if transfer.unfreeze_every_steps and strategy in ("head", "auto"):
        yield Problem(
            "transfer.unfreeze_every_steps",
            f"transfer.strategy: {strategy} {why}; write 0, or choose full or partial",
        )
    if transfer.layer_decay < 1 and strategy == "head":
        yield Problem(
            "transfer.layer_decay",
            "transfer.strategy: head trains no layer; write 1, or choose full or partial",
        )
