"""Losses of logits, beside the models' own: weights, smoothing, focus; and how two answers differ.

All are means over the counted labels, in fp32, so that parts of a batch add up exactly.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.robust.config import Form
from model.heads import IGNORE_INDEX
from model.task_heads import NO_CHOICE


@dataclass(frozen=True)
class Criterion:
    """The loss of logits (…, C) and labels of one form; by default the models' own.

    classes: labels (…) are class numbers, -100 is not counted. sets: labels (…, C) are 0 or 1.
    numbers: labels (…,) or as the logits. weights (C,): of each class; of sets, of its presence.
    A weighted sum is divided by the number of labels: see `class_weights`.
    """

    form: Form
    smoothing: float = 0.0
    gamma: float = 0.0
    weights: Tensor | None = None
    has_gaps: bool = False  # rows have unequal numbers of classes: the others are NO_CHOICE

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the counted labels."""
        logits = logits.float()
        if self.form == "numbers":
            return F.mse_loss(logits.view(labels.shape), labels.float())
        if self.form == "sets":
            return self._of_sets(logits, labels.float())
        assert self.form == "classes"
        return self._of_classes(logits.flatten(0, -2), labels.flatten())

    def _of_classes(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy; smoothed as in Szegedy et al. 2016, §7, focal as in Lin et al. 2017."""
        each = F.cross_entropy(
            logits,
            labels,
            weight=self._weights(logits),
            ignore_index=IGNORE_INDEX,
            reduction="none",
            # Over what is there: a question may have fewer choices than its neighbours.
            label_smoothing=0.0 if self.has_gaps else self.smoothing,
        )
        if self.has_gaps and self.smoothing:
            is_there = logits > NO_CHOICE / 2  # which bf16 rounds towards 0
            apart = -logits.log_softmax(-1).masked_fill(~is_there, 0).sum(-1) / is_there.sum(-1)
            each = (1 - self.smoothing) * each + self.smoothing * apart
        counted = labels != IGNORE_INDEX
        if self.gamma:
            places = labels.clamp(min=0)[:, None]
            right = logits.log_softmax(-1).gather(1, places)[:, 0]
            each = each * _unsureness(right, self.gamma)
        return (each * counted).sum() / counted.sum().clamp(min=1)

    def _of_sets(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels * (1 - self.smoothing) + self.smoothing / 2
        each = F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self._weights(logits), reduction="none"
        )
        if self.gamma:
            each = each * _unsureness(F.logsigmoid(logits * (2 * labels - 1)), self.gamma)
        return each.mean()

    def _weights(self, logits: Tensor) -> Tensor | None:
        return None if self.weights is None else self.weights.to(logits.device)


def _unsureness(log_probability: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma, its gradient finite also at p = 1."""
    # 1 - p from its logarithm loses nothing near 1; below 1e-6 the loss is none anyway.
    return (-torch.expm1(log_probability)).clamp(min=1e-6) ** gamma


def divergence(first: Tensor, second: Tensor, labels: Tensor, form: Form) -> Tensor:
    """How two answers (…, C) to the same batch differ: the mean of both KL divergences.

    A mean over the counted labels. Liang et al. 2021, "R-Drop"; for numbers their mean squared
    difference, as its authors take for STS-B. places: (B, T, 2), one distribution over T a side.
    """
    first, second = first.float(), second.float()
    if form == "numbers":
        return F.mse_loss(first, second)
    if form == "sets":  # each class is a coin of its own
        first, second = (torch.stack((x, torch.zeros_like(x)), -1) for x in (first, second))
        return _both_ways(first, second).mean()
    if form == "places":
        # -inf is what a model gives to a place that can't be: 0 · -inf is no number.
        first, second = (x.transpose(1, 2).clamp(min=NO_CHOICE) for x in (first, second))
        counted = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
    else:
        counted = labels != IGNORE_INDEX
    return (_both_ways(first, second) * counted).sum() / counted.sum().clamp(min=1)


def _both_ways(first: Tensor, second: Tensor) -> Tensor:
    """(KL(p, q) + KL(q, p)) / 2 over the last dimension = Σ (p - q)(log p - log q) / 2."""
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1) / 2
