"""The config section of robust training, and what may be asked of which task. Torch-free."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from finetune.tokenizer import TextTokenizer
from model.config import ModelConfig
from runtime.config import Config, Problem, key, section

Share = Annotated[float, Field(ge=0, lt=1)]
Form = Literal["classes", "sets", "numbers", "places"]

# What the loss of each kind of task is of: one class out of several (of a text, a token, a choice),
# any of several classes, a number, or where an answer starts and ends.
FORMS: dict[str, Form] = {
    "classification": "classes",
    "choice": "classes",
    "token": "classes",
    "multi_label": "sets",
    "regression": "numbers",
    "span": "places",
}
_EVERY = tuple(FORMS)
_CLASSES = ("classification", "choice", "token", "multi_label")
_NAMED = ("classification", "token", "multi_label")
_ONE_VECTOR = ("classification", "multi_label", "regression")
# The kinds of task that each key is for.
KINDS: dict[str, tuple[str, ...]] = {
    "adversarial": _EVERY,
    "r_drop": _EVERY,
    "mixup": _ONE_VECTOR,
    "label_smoothing": _CLASSES,
    "balance_classes": _NAMED,
    "class_weights": _NAMED,
    "focal_gamma": _CLASSES,
    # Where the answer is a place, or labels are a token's, the tokens must stay where they are.
    "augment.delete": ("classification", "choice", "multi_label", "regression"),
    "augment.swap": ("classification", "choice", "multi_label", "regression"),
    "augment.mask": ("classification", "choice", "multi_label", "regression", "token"),
    "augment.replace": ("classification", "choice", "multi_label", "regression", "token"),
}
# Each of these decides alone what a step learns from.
_ALONE = ("adversarial", "r_drop", "mixup")


class Augment(Config):
    """Noise on the tokens of the training texts, drawn anew in each step; special ones stay."""

    delete: Share = key(0.0, "Share of the tokens that are left out; one always stays")
    swap: Share = key(0.0, "Share of the tokens that change places with the next one")
    mask: Share = key(0.0, "Share of the tokens that become the mask token")
    replace: Share = key(
        0.0, "Share of the tokens that become others, drawn as often as train has them"
    )

    def is_on(self) -> bool:
        """Whether anything changes."""
        return any((self.delete, self.swap, self.mask, self.replace))


class Robust(Config):
    """What else the model learns from, so that it resists noise, few examples and rare classes."""

    adversarial: Literal["none", "fgm", "pgd", "freelb"] = key(
        "none",
        "Also learn from texts whose embeddings are moved to where the loss is greater. fgm: one "
        "step; pgd: several; freelb: several from a random start, each learned from",
    )
    epsilon: float = key(
        0.1,
        "adversarial: how far they are moved at most, as a share of the text's embeddings (L2 "
        "norms)",
        gt=0,
    )
    ascent_steps: int = key(3, "adversarial: steps of pgd and freelb", ge=1, le=100)
    step_size: float = key(0.4, "adversarial: length of such a step, as a share of epsilon", gt=0)
    r_drop: float = key(
        0.0,
        "Weight of the difference (KL; regression: squares) between two passes with other dropout; "
        "0 = one pass",
        ge=0,
    )
    mixup: float = key(
        0.0,
        "Mix the vector of each text with another's of its micro-batch, in shares from Beta(mixup, "
        "mixup); 0 = no mixing",
        ge=0,
    )
    dropout: Share | None = key(
        None, "Dropout of the model in this run and in what it saves; none = as the checkpoint says"
    )
    label_smoothing: Share = key(0.0, "Share of each label that is spread over all classes")
    balance_classes: bool = key(
        False,
        "Weigh classes so that each counts the same: examples ÷ (classes × examples of the class)",
    )
    class_weights: dict[str, float] = key(
        {},
        "Weight of the loss by class, as {class: weight}; others weigh 1. The sum is divided by "
        "the number of labels, not by their weights",
    )
    focal_gamma: float = key(
        0.0, "Focal loss: multiply by (1 - probability of the right class) to this power", ge=0
    )
    augment: Augment = section(Augment, "Noise on the training texts")

    @pydantic.field_validator("class_weights", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        """Read class 1 in YAML as the class "1" of a file."""
        if not isinstance(value, Mapping):
            return value
        return {
            str(name).lower() if isinstance(name, bool) else str(name): weight
            for name, weight in value.items()
        }

    @pydantic.field_validator("class_weights")
    @classmethod
    def _weights_are_positive(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if weight <= 0:
                raise ValueError(f"class {name!r} weighs {weight}; write a number above 0")
        return value

    def asked(self) -> Iterator[str]:
        """The keys that change what is learned."""
        for name in ("r_drop", "mixup", "label_smoothing", "balance_classes", "class_weights"):
            if getattr(self, name):
                yield name
        if self.adversarial != "none":
            yield "adversarial"
        if self.focal_gamma:
            yield "focal_gamma"
        for name in Augment.model_fields:
            if getattr(self.augment, name):
                yield f"augment.{name}"


def check_robust(robust: Robust, kind: str) -> Iterator[Problem]:
    """What does not go together, or with this kind of task."""
    asked = list(robust.asked())
    for name in asked:
        if kind not in KINDS[name]:
            yield Problem(
                f"robust.{name}",
                f"is not for task.kind: {kind}, but for {', '.join(KINDS[name])}; leave it out",
            )
    alone = [name for name in _ALONE if name in asked]
    if len(alone) > 1:
        yield Problem(
            f"robust.{alone[1]}",
            f"does not go together with robust.{alone[0]}; choose one of the two",
        )
    if robust.balance_classes and robust.class_weights:
        yield Problem(
            "robust.class_weights", "robust.balance_classes weighs them already; keep one of them"
        )


def check_classes(robust: Robust, labels: list[str]) -> Iterator[Problem]:
    """Weights of classes that the data do not have."""
    unknown = [name for name in robust.class_weights if name not in labels]
    if unknown:
        known = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
        yield Problem(
            "robust.class_weights",
            f"train has no class {', '.join(map(repr, unknown[:5]))}; its classes are {known}",
        )


def check_with_model(
    robust: Robust, shape: ModelConfig, tokenizer: TextTokenizer, *, adapter_dropout: float
) -> Iterator[Problem]:
    """What this model can't do."""
    dropout = shape.dropout if robust.dropout is None else robust.dropout
    if robust.r_drop and not (dropout or adapter_dropout):
        yield Problem(
            "robust.r_drop",
            "the model has no dropout, so that two passes are the same; write robust.dropout: 0.1",
        )
    if robust.augment.mask and tokenizer.mask_id is None:
        yield Problem(
            "robust.augment.mask",
            f"the tokenizer of {tokenizer.directory} names no mask_token; take "
            "robust.augment.replace",
        )
