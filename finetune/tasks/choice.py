"""Which of several texts goes with a text: questions with answers to choose from. Torch-free."""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.readers import read_records
from finetune.tasks.base import Encoded, Outputs, Problem, Task, join
from finetune.tasks.texts import Label, text_problem
from finetune.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ChoiceExample:
    """A text, maybe a question on it, and what there is to choose from."""

    line: int
    first: str
    question: str | None
    choices: tuple[str, ...]
    label: int | None  # number of the right choice from 0; None in one to predict on

    @property
    def text(self) -> str:
        """All that the model reads."""
        return "\t".join((self.first, self.question or "", *self.choices))

    @property
    def stratum(self) -> str:
        """Nothing: the place of the right choice says nothing."""
        return ""

    def pair(self, choice: str) -> tuple[str, str]:
        """The two texts that the model reads of one choice."""
        return self.first, choice if self.question is None else f"{self.question} {choice}"


class Choice(Task):
    """The right one of several texts, which may be of another number in each example."""

    kind = "choice"
    head = "choice"
    metrics = ("accuracy",)

    def stream(self, path: Path, *, labelled: bool = True) -> Iterator[ChoiceExample | Problem]:
        """Yield the examples of a file, with the right choice where `labelled`."""
        keys = self.keys
        texts = [keys.text_key] if keys.pair_key is None else [keys.text_key, keys.pair_key]
        wanted = [*texts, keys.choices_key, *([keys.label_key] if labelled else [])]
        for line, values, problem in read_records(path, wanted, columns=keys.columns):
            choices: Any = values.get(keys.choices_key)
            found = [text_problem(values.get(key), key) for key in texts]
            found.append(_choices_problem(choices, keys.choices_key))
            wrong = problem or next(filter(None, found), None)
            label = Label(None)
            if labelled and wrong is None:
                label = _number(values[keys.label_key], choices)
            if wrong or label.problem:
                yield Problem(line, wrong or f"{keys.label_key!r} {label.problem}")
            else:
                question = None if keys.pair_key is None else values[keys.pair_key]
                first = values[keys.text_key]
                yield ChoiceExample(line, first, question, tuple(choices), label.value)

    def head_settings(self, labels: Sequence[str]) -> dict[str, Any]:
        """One output, the score of a choice."""
        return {"num_labels": 1}

    def encode(
        self, examples: Sequence[ChoiceExample], labels: Sequence[str], tokenizer: TextTokenizer
    ) -> Encoded:
        """Tokenise all choices, each with its text; labels (N,) are numbers of choices.

        Every item has as many rows as the example with the most choices. Rows beyond an example's
        own are empty, and the model never chooses them.
        """
        most = max(len(example.choices) for example in examples)
        found = tokenizer.encode_pairs([e.pair(choice) for e in examples for choice in e.choices])
        rows, segments, truncated, at = [], [], 0, 0
        for example in examples:
            own = slice(at, at + len(example.choices))
            missing = most - len(example.choices)
            rows += [*found.rows[own], *[np.empty(0, np.int32)] * missing]
            if found.segments is not None:
                segments += [*found.segments[own], *[np.empty(0, np.int8)] * missing]
            truncated += any(found.is_cut[own])
            at = own.stop
        tokens, starts = join(rows)
        # One to predict on counts as the first choice: nobody looks at it.
        right = np.array([example.label or 0 for example in examples], dtype=np.int64)
        return Encoded(
            examples,
            tokens,
            starts,
            right,
            truncated,
            segments=np.concatenate(segments) if segments else None,
            rows_per_item=most,
        )

    def reduce(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> Outputs:
        """Log-probabilities of the choices that an example has, (choices,) each."""
        counts = batch["attention_mask"].any(-1).sum(-1).tolist()
        rows = logits.float().log_softmax(-1).cpu().numpy()
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    def scores(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, float]:
        """Accuracy and loss."""
        hits = [row.argmax() == right for row, right in zip(outputs, data.labels, strict=True)]
        losses = [-float(row[right]) for row, right in zip(outputs, data.labels, strict=True)]
        return {"accuracy": float(np.mean(hits)), "loss": float(np.mean(losses))}

    def predictions(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield each example's choice, its number from 0, and the probability of each."""
        for example, row in zip(data.examples, outputs, strict=True):
            known = {} if example.label is None else {"label": example.choices[example.label]}
            probabilities = np.exp(row.astype(np.float64)).round(6).tolist()
            best = int(row.argmax())
            yield {
                **known,
                "predicted": example.choices[best],
                "choice": best,
                "probability": probabilities[best],
                "probabilities": probabilities,
            }


def _choices_problem(choices: Any, key: str) -> str | None:
    if not isinstance(choices, list):
        return f"{key!r} must be a list of texts, got {type(choices).__name__}"
    if len(choices) < 2:
        return f"{key!r} has {len(choices)} texts; two or more are needed"
    wrong = next((c for c in choices if not isinstance(c, str)), "")
    if not isinstance(wrong, str):
        return f"{key!r} must be a list of texts, got one with {type(wrong).__name__}"
    if not all(choice.strip() for choice in choices):
        return f"{key!r} has an empty text; fill it in or leave it out"
    twice = next((c for c in choices if choices.count(c) > 1), None)
    return None if twice is None else f"{key!r} has {twice!r} twice"


def _number(value: Any, choices: list[str]) -> Label:
    """The right choice: its text, its number from 0, or its letter from A."""
    count = len(choices)
    expected = f"must be one of the {count} choices, its number (0 to {count - 1}) or its letter"
    if isinstance(value, bool) or not isinstance(value, int | str):
        return Label(None, f"{expected}, got {type(value).__name__}")
    text = str(value).strip()
    number = int(text) if text.isdecimal() else _letter(text)
    found = {number} if 0 <= number < count else set()
    if isinstance(value, str) and value in choices:
        found.add(choices.index(value))
    if len(found) > 1:
        return Label(
            None,
            f"{value!r} is a choice, and the number or letter of another; write the right one's "
            "place as a number",
        )
    return Label(found.pop()) if found else Label(None, f"{expected}, got {value!r}")


def _letter(text: str) -> int:
    return string.ascii_uppercase.find(text.upper()) if len(text) == 1 else -1
