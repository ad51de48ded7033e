"""Scores of classifiers, by scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

Classes = npt.NDArray[np.int64]  # (N,) class numbers
Sets = npt.NDArray[np.bool_]  # (N, classes) which hold


def scores(gold: Classes, predicted: Classes) -> dict[str, float]:
    """Accuracy and macro-F1: the mean F1 of the classes that occur in `gold` or `predicted`."""
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        "macro_f1": float(f1_score(gold, predicted, average="macro", zero_division=0)),
    }


def auroc(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative."""
    gold = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    return float(roc_auc_score(gold, np.concatenate([positive, negative])))


def report(gold: Classes, predicted: Classes, names: Sequence[str]) -> dict[str, Any]:
    """All scores: per class, their means, and the confusion matrix.

    The means are over the classes that occur in `gold` or `predicted`: a class that the set lacks
    says nothing. `confusion_matrix[i][j]` counts texts of class i that were taken for class j.
    """
    everything = list(range(len(names)))
    columns = precision_recall_fscore_support(gold, predicted, labels=everything, zero_division=0)
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        "labels": list(names),
        "classes": {
            name: _row(*(float(column[i]) for column in columns)) for i, name in enumerate(names)
        },
        **{
            f"{average} avg": _average(gold, predicted, average)
            for average in ("macro", "weighted")
        },
        "confusion_matrix": confusion_matrix(gold, predicted, labels=everything).tolist(),
    }


def _row(precision: float, recall: float, f1: float, support: float) -> dict[str, float]:
    return {"precision": precision, "recall": recall, "f1-score": f1, "support": int(support)}


def _average(gold: Classes, predicted: Classes, average: str) -> dict[str, float]:
    precision, recall, f1, _ = precision_recall_fscore_support(
        gold, predicted, average=average, zero_division=0
    )
    return _row(float(precision), float(recall), float(f1), len(gold))


def report_text(gold: Classes, predicted: Classes, names: Sequence[str]) -> str:
    """Return the same as a table for people, of the classes that occur."""
    present = sorted({*gold.tolist(), *predicted.tolist()})
    text: str = classification_report(
        gold,
        predicted,
        labels=present,
        target_names=[names[i] for i in present],
        digits=4,
        zero_division=0,
    )
    return text


def set_scores(gold: Sets, predicted: Sets) -> dict[str, float]:
    """Micro- and macro-F1, accuracy of whole sets, and the share of wrong answers.

    The macro mean is over the classes that occur in `gold` or `predicted`.
    """
    means = _means(gold, predicted)
    return {
        "micro_f1": means["micro"][2],
        "macro_f1": means["macro"][2],
        "accuracy": float((gold == predicted).all(1).mean()),
        "hamming_loss": float((gold != predicted).mean()),
    }


def set_report(gold: Sets, predicted: Sets, names: Sequence[str]) -> dict[str, Any]:
    """All scores of sets of classes: per class, and their means over the classes that occur."""
    columns = _of_counts(*_counts(gold, predicted, axis=0))
    support = gold.sum(0)
    total = float(gold.sum())
    return {
        **set_scores(gold, predicted),
        "labels": list(names),
        "classes": {
            name: _row(*(float(column[i]) for column in (*columns, support)))
            for i, name in enumerate(names)
        },
        **{
            f"{average} avg": _row(*values, total)
            for average, values in _means(gold, predicted).items()
        },
    }


def _counts(gold: Sets, predicted: Sets, axis: int | None) -> tuple[Any, Any, Any]:
    """Hits, predictions and gold labels. Not by scikit-learn, which takes one class for two."""
    return (gold & predicted).sum(axis), predicted.sum(axis), gold.sum(axis)


def _of_counts(hits: Any, predicted: Any, gold: Any) -> tuple[Any, Any, Any]:
    """Precision, recall and F1, 0 where there is nothing to divide by."""
    pairs = (hits, predicted), (hits, gold), (2 * hits, predicted + gold)
    precision, recall, f1 = (np.divide(a, np.maximum(b, 1)) for a, b in pairs)
    return precision, recall, f1


def _means(gold: Sets, predicted: Sets) -> dict[str, tuple[float, float, float]]:
    gold, predicted = gold.astype(bool), predicted.astype(bool)
    columns = np.stack(_of_counts(*_counts(gold, predicted, axis=0)))  # (3, classes)
    occurs, support = gold.any(0) | predicted.any(0), gold.sum(0)
    found = {
        "micro": _of_counts(*_counts(gold, predicted, axis=None)),
        "macro": columns[:, occurs].mean(1) if occurs.any() else np.zeros(3),
        "weighted": columns @ support / max(support.sum(), 1),
    }
    means = {name: [float(value) for value in values] for name, values in found.items()}
    return {name: (p, r, f) for name, (p, r, f) in means.items()}


def set_report_text(gold: Sets, predicted: Sets, names: Sequence[str]) -> str:
    """Return the same as a table for people, of the classes that occur."""
    present = np.flatnonzero(gold.any(0) | predicted.any(0)).tolist()
    if not present:
        return "no text has a class, and none is predicted\n"
    found = set_report(gold, predicted, names)
    rows = [(names[i], found["classes"][names[i]]) for i in present]
    averages = [(name, found[name]) for name in ("micro avg", "macro avg", "weighted avg")]
    width = max(len(name) for name, _ in (*rows, *averages))
    columns = ("precision", "recall", "f1-score")
    lines = [" " * width + "".join(f" {name:>10}" for name in (*columns, "support")), ""]
    for name, row in (*rows, ("", None), *averages):
        values = "" if row is None else "".join(f" {row[key]:>10.4f}" for key in columns)
        lines.append("" if row is None else f"{name:>{width}}{values} {row['support']:>10}")
    return "\n".join(lines) + "\n"
