"""What the tasks share that read a text, or a pair of texts. Torch-free."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.readers import read_records
from finetune.tasks.base import Encoded, Problem, Task, join
from finetune.tokenizer import TextTokenizer


@dataclass(frozen=True)
class TextExample:
    """A text or a pair with its label as the task reads it; None in a text to predict on."""

    line: int
    first: str
    label: Any
    second: str | None = None

    @property
    def text(self) -> str:
        """All that the model reads."""
        return self.first if self.second is None else f"{self.first}\t{self.second}"

    @property
    def stratum(self) -> str:
        """The class, or the first of several."""
        if isinstance(self.label, tuple):
            return str(self.label[0]) if self.label else ""
        return self.label if isinstance(self.label, str) else ""


class Label(NamedTuple):
    """A label as the task reads it, or what is wrong with it."""

    value: Any
    problem: str | None = None


class TextTask(Task):
    """A task whose examples are texts, or pairs of texts where `pair_key` is given."""

    head = "sequence"

    def stream(self, path: Path, *, labelled: bool = True) -> Iterator[TextExample | Problem]:
        """Yield the texts of a file, with their labels where `labelled`."""
        keys = self.keys
        texts = [keys.text_key] if keys.pair_key is None else [keys.text_key, keys.pair_key]
        wanted = [*texts, keys.label_key] if labelled else texts
        for line, values, problem in read_records(path, wanted, columns=keys.columns):
            found = [text_problem(values.get(key), key) for key in texts]
            wrong = problem or next(filter(None, found), None)
            label = Label(None)
            if labelled and wrong is None:
                label = self.read_label(values[keys.label_key])
            if wrong or label.problem:
                yield Problem(line, wrong or f"{keys.label_key!r} {label.problem}")
            else:
                second = None if keys.pair_key is None else str(values[keys.pair_key])
                yield TextExample(line, str(values[keys.text_key]), label.value, second)

    @abstractmethod
    def read_label(self, value: Any) -> Label:
        """Read a label from its field; a problem goes on from the field's name."""

    def tokenise(
        self, examples: Sequence[TextExample], labels: npt.NDArray[Any], tokenizer: TextTokenizer
    ) -> Encoded:
        """Token ids of the texts with these labels (N, …)."""
        if self.keys.pair_key is None:
            rows, truncated = tokenizer.encode_all([example.first for example in examples])
            return Encoded(examples, *join(rows), labels, truncated)
        pairs = [(example.first, example.second or "") for example in examples]
        found = tokenizer.encode_pairs(pairs)
        tokens, starts = join(found.rows)
        segments = None if found.segments is None else np.concatenate(found.segments)
        return Encoded(examples, tokens, starts, labels, sum(found.is_cut), segments)


def text_problem(text: Any, key: str) -> str | None:
    """Say what is wrong with a text, or None."""
    if not isinstance(text, str):
        return f"{key!r} must be text, got {type(text).__name__}"
    return None if text.strip() else f"{key!r} is empty; remove the line or fill it in"


def label_name(value: Any) -> str | None:
    """A label's name: 1 in JSON and 1 in CSV are the same class. None: it can't be one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value).strip()
    return None
