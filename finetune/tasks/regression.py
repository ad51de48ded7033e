"""A number for each text or pair of texts: how alike, how strong, how good. Torch-free."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.tasks.base import Encoded, Outputs
from finetune.tasks.texts import Label, TextExample, TextTask
from finetune.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

Numbers = npt.NDArray[np.float64]


class Regression(TextTask):
    """One number for each text or pair."""

    kind = "regression"
    metrics = ("pearson", "spearman", "mse")

    def read_label(self, value: Any) -> Label:
        """Read a number, from a number or from text."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return Label(None, f"must be a number, got {type(value).__name__}")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            got = "nothing" if not str(value).strip() else repr(value)
            return Label(None, f"must be a number, got {got}")
        return Label(number) if math.isfinite(number) else Label(None, f"must be finite: {value!r}")

    def check(self, name: str, examples: Sequence[TextExample], labels: Sequence[str]) -> list[str]:
        """A training set of which all texts have one number."""
        if name != "train" or len({example.label for example in examples}) > 1:
            return []
        return [f"every text has the number {examples[0].label}; there is nothing to learn"]

    def head_settings(self, labels: Sequence[str]) -> dict[str, Any]:
        """One output, trained on its squared error."""
        return {"num_labels": 1, "problem_type": "regression"}

    def encode(
        self, examples: Sequence[TextExample], labels: Sequence[str], tokenizer: TextTokenizer
    ) -> Encoded:
        """Tokenise all texts; labels (N,) are their numbers in fp32."""
        # A text to predict on counts as 0: nobody looks at it.
        numbers = np.array([example.label or 0 for example in examples], dtype=np.float32)
        return self.tokenise(examples, numbers, tokenizer)

    def reduce(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> Outputs:
        """The number (1,) of each text."""
        return list(logits.float().cpu().numpy())

    def scores(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, float]:
        """Pearson's and Spearman's correlation, mean squared error, and the loss, which it is."""
        gold, predicted = data.labels.astype(np.float64), _numbers(outputs)
        error = float(((gold - predicted) ** 2).mean())
        return {
            "pearson": pearson(gold, predicted),
            "spearman": pearson(ranks(gold), ranks(predicted)),
            "mse": error,
            "loss": error,
        }

    def predictions(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield each text's number."""
        for example, number in zip(data.examples, _numbers(outputs), strict=True):
            known = {} if example.label is None else {"label": example.label}
            yield {**known, "predicted": round(float(number), 6)}


def _numbers(outputs: Outputs) -> Numbers:
    found: Numbers = np.concatenate(outputs).astype(np.float64)
    return found


def pearson(first: Numbers, second: Numbers) -> float:
    """Pearson's correlation of two rows of numbers (N,); 0 where one of them never changes."""
    first, second = first - first.mean(), second - second.mean()
    size = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / size if size > 0 else 0.0


def ranks(values: Numbers) -> Numbers:
    """The place of each number in rising order, equal ones sharing the mean of theirs, (N,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Numbers = (ends - (counts - 1) / 2)[inverse]
    return found
