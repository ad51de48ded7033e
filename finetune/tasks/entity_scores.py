"""Scores of entities: one is right where its words and its type are. Torch-free.

Counted as in CoNLL-2003, in the strict reading of seqeval (Nakayama 2018).
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from finetune.tasks.tagging import Entity

Row = dict[str, float]  # precision, recall, f1-score, support


class Counts(NamedTuple):
    """Entities of each type."""

    gold: Counter[str]
    predicted: Counter[str]
    right: Counter[str]


def count(gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]) -> Counts:
    """Count the entities of sentences, and those predicted with the very same words and type."""
    counts = Counts(Counter(), Counter(), Counter())
    for own, found in zip(gold, predicted, strict=True):
        counts.gold.update(e.type for e in own)
        counts.predicted.update(e.type for e in found)
        counts.right.update(e.type for e in {*own} & {*found})
    return counts


def overall(counts: Counts) -> Row:
    """Precision, recall and F1 of all entities together, and how many there are."""
    return _row(counts.right.total(), counts.predicted.total(), counts.gold.total())


def by_type(counts: Counts) -> dict[str, Row]:
    """Return the same of each type that occurs."""
    return {
        name: _row(counts.right[name], counts.predicted[name], counts.gold[name])
        for name in sorted({*counts.gold, *counts.predicted})
    }


def averages(rows: dict[str, Row]) -> dict[str, Row]:
    """Means over the types: of all alike, and weighted by how often each occurs."""
    support = sum(row["support"] for row in rows.values())
    equal = dict.fromkeys(rows, 1 / max(1, len(rows)))
    by_support = {name: row["support"] / max(1, support) for name, row in rows.items()}
    return {
        f"{kind} avg": {
            **{
                score: sum(weights[name] * row[score] for name, row in rows.items())
                for score in ("precision", "recall", "f1-score")
            },
            "support": support,
        }
        for kind, weights in (("macro", equal), ("weighted", by_support))
    }


def _row(right: int, predicted: int, gold: int) -> Row:
    return {
        "precision": right / max(1, predicted),
        "recall": right / max(1, gold),
        "f1-score": 2 * right / max(1, predicted + gold),
        "support": gold,
    }


def table(rows: dict[str, Row]) -> str:
    """Write rows as a table for people."""
    width = max(len(name) for name in rows)
    columns = ("precision", "recall", "f1-score", "support")
    lines = [" " * width + "".join(f"{column:>11}" for column in columns)]
    for name, row in rows.items():
        scores = "".join(f"{row[column]:11.4f}" for column in columns[:3])
        lines.append(f"{name:>{width}}{scores}{row['support']:11.0f}")
    return "\n".join(lines) + "\n"
