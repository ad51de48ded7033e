"""One class for each text, or for each pair of texts. Torch-free."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.tasks.base import Encoded, Indices, Outputs
from finetune.tasks.texts import Label, TextExample, TextTask, label_name
from finetune.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

LogProbabilities = npt.NDArray[np.float32]  # (N, classes), natural logarithm


class Classification(TextTask):
    """One class for each text or pair."""

    kind = "classification"
    metrics = ("accuracy", "macro_f1")

    def read_label(self, value: Any) -> Label:
        """Read a class from a word or a whole number."""
        name = label_name(value)
        if name is None:
            return Label(None, f"must be a word or a whole number, got {type(value).__name__}")
        return Label(name) if name else Label(None, "is empty; give every text a label")

    def label_names(self, train: Sequence[TextExample]) -> list[str]:
        """Every class once: in numerical order where all are numbers, else alphabetically."""
        return sorted_names({example.stratum for example in train})

    def check(self, name: str, examples: Sequence[TextExample], labels: Sequence[str]) -> list[str]:
        """Classes that train does not have, and a training set of one class."""
        if name == "train":
            if len(labels) != 1:
                return []
            return [f"every text has the label {labels[0]!r}; two classes or more are needed"]
        return unknown_labels(((e.stratum, e.line) for e in examples), labels)

    def encode(
        self, examples: Sequence[TextExample], labels: Sequence[str], tokenizer: TextTokenizer
    ) -> Encoded:
        """Tokenise all texts; labels (N,) are the numbers of their classes."""
        number = {name: i for i, name in enumerate(labels)}
        # A text to predict on counts as the first class: nobody looks at it.
        classes = np.array([number[e.label] if e.label else 0 for e in examples], dtype=np.int64)
        return self.tokenise(examples, classes, tokenizer)

    def reduce(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> Outputs:
        """Log-probabilities (classes,) of each text."""
        return list(logits.float().log_softmax(-1).cpu().numpy())

    def scores(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, float]:
        """Accuracy, macro-F1 and loss."""
        from finetune import metrics  # scikit-learn takes a second, and checks need none

        return {**metrics.scores(data.labels, _best(outputs)), "loss": _loss(data, outputs)}

    def report(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, Any]:
        """All scores: per class, their means, and the confusion matrix; see `metrics.report`."""
        from finetune import metrics

        whole = metrics.report(data.labels, _best(outputs), labels)
        macro_f1 = whole["macro avg"]["f1-score"]
        return {"loss": _loss(data, outputs), "macro_f1": macro_f1, **whole}

    def report_text(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> str:
        """Return the same as a table for people, of the classes that occur."""
        from finetune import metrics

        return metrics.report_text(data.labels, _best(outputs), labels)

    def predictions(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield each text's class, its probability, and every class's."""
        for example, row in zip(data.examples, outputs, strict=True):
            known = {} if example.label is None else {"label": example.label}
            yield {**known, **prediction(row, labels)}


def _best(outputs: Outputs) -> Indices:
    found: Indices = np.stack(outputs).argmax(-1)
    return found


def _loss(data: Encoded, outputs: Outputs) -> float:
    """Mean negative log-likelihood of the right classes, in nats."""
    rows = np.stack(outputs)
    return -float(rows[np.arange(len(rows)), data.labels].mean(dtype=np.float64))


def prediction(row: LogProbabilities, names: Sequence[str]) -> dict[str, Any]:
    """One text's class, its probability, and every class's, from log-probabilities (classes,)."""
    probabilities = np.exp(row.astype(np.float64)).round(6).tolist()
    best = int(row.argmax())
    return {
        "predicted": names[best],
        "probability": probabilities[best],
        "probabilities": dict(zip(names, probabilities, strict=True)),
    }


def sorted_names(names: set[str]) -> list[str]:
    """Sort names: in numerical order where all are numbers, else alphabetically."""
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def unknown_labels(found: Iterable[tuple[str, int]], known: Sequence[str]) -> list[str]:
    """Labels of a set, each with its line, that train does not have: one line for all."""
    unknown: dict[str, int] = {}
    names = set(known)
    for label, line in found:
        if label not in names:
            unknown.setdefault(label, line)
    if not unknown:
        return []
    listed = ", ".join(f"{label!r} (line {line})" for label, line in list(unknown.items())[:10])
    more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    return [
        f"labels that train never has: {listed}{more}; add examples of them to train, or remove "
        "them here"
    ]
