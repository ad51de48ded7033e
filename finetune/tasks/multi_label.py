"""Any number of classes for each text, or for each pair of texts. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.tasks.base import Encoded, Outputs
from finetune.tasks.classification import sorted_names, unknown_labels
from finetune.tasks.texts import Label, TextExample, TextTask, label_name
from finetune.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

LogOdds = npt.NDArray[np.float64]  # (N, classes), natural logarithm
Sets = npt.NDArray[np.bool_]  # (N, classes)


class MultiLabel(TextTask):
    """None, one or several classes for each text or pair."""

    kind = "multi_label"
    metrics = ("micro_f1", "macro_f1", "accuracy", "hamming_loss")

    def read_label(self, value: Any) -> Label:
        """Read a JSON list, or text with a separator, into sorted names."""
        if not isinstance(value, list):
            text = label_name(value)
            if text is None:
                return Label(None, f"must be a list of words, got {type(value).__name__}")
            value = text.split(self.keys.separator) if self.keys.separator else [text]
            value = [] if not text else value
        names = [label_name(item) for item in value]
        if None in names:
            wrong = value[names.index(None)]
            return Label(None, f"must be a list of words, got one with {type(wrong).__name__}")
        if "" in names:
            return Label(None, "has an empty class; leave it out")
        found = sorted(filter(None, names))
        twice = next((a for a, b in pairwise(found) if a == b), None)
        return Label(tuple(found)) if twice is None else Label(None, f"has {twice!r} twice")

    def label_names(self, train: Sequence[TextExample]) -> list[str]:
        """Every class once: in numerical order where all are numbers, else alphabetically."""
        return sorted_names({name for example in train for name in example.label})

    def check(self, name: str, examples: Sequence[TextExample], labels: Sequence[str]) -> list[str]:
        """Classes that train does not have, and a training set without classes."""
        if name == "train":
            return [] if labels else ["no text has a class; there is nothing to learn"]
        return unknown_labels(((x, e.line) for e in examples for x in e.label), labels)

    def head_settings(self, labels: Sequence[str]) -> dict[str, Any]:
        """One output a class, each trained as a question of its own."""
        return {**super().head_settings(labels), "problem_type": "multi_label_classification"}

    def encode(
        self, examples: Sequence[TextExample], labels: Sequence[str], tokenizer: TextTokenizer
    ) -> Encoded:
        """Tokenise all texts; labels (N, classes) are 1 for a text's classes and 0 for others."""
        number = {name: i for i, name in enumerate(labels)}
        sets = np.zeros((len(examples), len(labels)), dtype=np.float32)
        for row, example in zip(sets, examples, strict=True):
            row[[number[name] for name in example.label or ()]] = 1
        return self.tokenise(examples, sets, tokenizer)

    def reduce(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> Outputs:
        """Log-odds (classes,) of each text."""
        return list(logits.float().cpu().numpy())

    def scores(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, float]:
        """Micro- and macro-F1, accuracy of whole sets, share of wrong answers, and loss."""
        from finetune import metrics  # scikit-learn takes a second, and checks need none

        found = metrics.set_scores(data.labels > 0, self._chosen(outputs))
        return {**found, "loss": _loss(data, outputs)}

    def report(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, Any]:
        """All scores, and those of each class; see `metrics.set_report`."""
        from finetune import metrics

        found = metrics.set_report(data.labels > 0, self._chosen(outputs), labels)
        return {"loss": _loss(data, outputs), **found}

    def report_text(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> str:
        """Return the scores as a table for people, of the classes that occur."""
        from finetune import metrics

        table = metrics.set_report_text(data.labels > 0, self._chosen(outputs), labels)
        return table + super().report_text(data, outputs, labels)

    def predictions(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield each text's classes, and every class's probability."""
        chosen, probabilities = self._chosen(outputs), _probabilities(outputs).round(6)
        for example, row, each in zip(data.examples, chosen, probabilities, strict=True):
            known = {} if example.label is None else {"label": list(example.label)}
            predicted = [labels[i] for i in np.flatnonzero(row).tolist()]
            by_name = dict(zip(labels, each.tolist(), strict=True))
            yield {**known, "predicted": predicted, "probabilities": by_name}

    def _chosen(self, outputs: Outputs) -> Sets:
        found: Sets = _probabilities(outputs) >= self.keys.threshold
        return found


def _log_odds(outputs: Outputs) -> LogOdds:
    found: LogOdds = np.stack(outputs).astype(np.float64)
    return found


def _probabilities(outputs: Outputs) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * _log_odds(outputs)))
    return found


def _loss(data: Encoded, outputs: Outputs) -> float:
    """Mean negative log-likelihood of each answer, in nats."""
    signs = 1 - 2 * data.labels.astype(np.float64)
    return float(np.logaddexp(0, signs * _log_odds(outputs)).mean())
