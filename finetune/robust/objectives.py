"""What a run trains by: the model's own loss, or one of `finetune.robust`."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from finetune.devices import Objective, plain
from finetune.robust.adversarial import Ascent, Batch, adversarial_loss, repeated
from finetune.robust.config import FORMS, Form, Robust
from finetune.robust.losses import Criterion, divergence


def objective_of(
    robust: Robust, kind: str, classes: Sequence[str], labels: npt.NDArray[Any]
) -> Objective:
    """What the config asks for, which has been checked; by default the model's own loss.

    classes: in the order of their numbers; labels: of the training set, as `Encoded.labels`.
    """
    if kind not in FORMS:
        return plain
    form = FORMS[kind]
    weights = class_weights(robust, form, classes, labels)
    is_own = not (robust.label_smoothing or robust.focal_gamma or weights is not None)
    settings = robust.label_smoothing, robust.focal_gamma, weights, kind == "choice"
    criterion = None if is_own else Criterion(form, *settings)
    if robust.adversarial != "none":
        ascent = Ascent(robust.adversarial, robust.epsilon, robust.ascent_steps, robust.step_size)
        return partial(_adversarial, ascent, criterion)
    if robust.r_drop:
        return partial(_r_drop, robust.r_drop, form, criterion)
    if robust.mixup:
        return partial(_mixup, robust.mixup, Criterion(form, *settings))
    return plain if criterion is None else partial(_scored, criterion)


def class_weights(
    robust: Robust, form: Form, classes: Sequence[str], labels: npt.NDArray[Any]
) -> Tensor | None:
    """Weight of each class (C,), or None where all weigh the same.

    Balanced as scikit-learn's `class_weight="balanced"`, with which the mean weight of a training
    label is 1; of sets, the ratio of the examples without a class to those with it.
    """
    if robust.class_weights:
        return torch.tensor([float(robust.class_weights.get(name, 1)) for name in classes])
    if not robust.balance_classes:
        return None
    if form == "sets":
        present = labels.sum(0)
        ratio = (len(labels) - present) / np.maximum(present, 1)
        # A class of no example, or of all, can't be balanced.
        return torch.tensor(np.where((present > 0) & (ratio > 0), ratio, 1), dtype=torch.float32)
    counted = labels[labels >= 0]
    counts = np.bincount(counted.ravel(), minlength=len(classes))
    ratio = len(counted) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.tensor(np.where(counts > 0, ratio, 1), dtype=torch.float32)


class _Scored(NamedTuple):
    loss: Tensor
    logits: Tensor


def _measure(criterion: Criterion | None, net: Callable[..., Any], batch: Batch) -> _Scored:
    """The loss by the criterion, or the model's own where there is none."""
    if criterion is None:
        out = net(**batch)
        return _Scored(out.loss, out.logits)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = net(**inputs).logits
    return _Scored(criterion(logits, batch["labels"]), logits)


def _scored(
    criterion: Criterion, forward: Callable[..., Any], _module: nn.Module, batch: Batch
) -> Tensor:
    return _measure(criterion, forward, batch).loss


def _adversarial(
    ascent: Ascent,
    criterion: Criterion | None,
    forward: Callable[..., Any],
    module: nn.Module,
    batch: Batch,
) -> Tensor:
    def loss(net: Callable[..., Any], some: Batch) -> Tensor:
        return _measure(criterion, net, some).loss

    return adversarial_loss(ascent, loss, forward, module, batch)


def _r_drop(
    weight: float,
    form: Form,
    criterion: Criterion | None,
    forward: Callable[..., Any],
    _module: nn.Module,
    batch: Batch,
) -> Tensor:
    """Two passes as one of twice the rows: dropout differs by row (Liang et al. 2021)."""
    loss, logits = _measure(criterion, forward, repeated(batch, 2))
    first, second = logits.chunk(2)
    return loss + weight * divergence(first, second, batch["labels"], form)


def _mixup(
    alpha: float,
    criterion: Criterion,
    forward: Callable[..., Any],
    module: nn.Module,
    batch: Batch,
) -> Tensor:
    """Mix what the last layer reads, and the losses of both labels alike.

    Zhang et al. 2018, at the hidden vector of a text as in Guo et al. 2019 (senMixup). One share a
    micro-batch, drawn from torch's generator, which is seeded by the step and the rank.
    """
    rows = len(batch["labels"])
    order = torch.randperm(rows).to(batch["labels"].device)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with _mixed(module.get_submodule("score"), share, order):
        logits = forward(**inputs).logits
    labels = batch["labels"]
    return share * criterion(logits, labels) + (1 - share) * criterion(logits, labels[order])


@contextlib.contextmanager
def _mixed(layer: nn.Module, share: float, order: Tensor) -> Iterator[None]:
    def mix(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,) = inputs
        return (share * hidden + (1 - share) * hidden[order],)

    handle = layer.register_forward_pre_hook(mix)
    try:
        yield
    finally:
        handle.remove()
