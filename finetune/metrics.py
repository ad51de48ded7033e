"""Scores of a classifier, by scikit-learn."""

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
