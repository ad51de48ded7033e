"""What every task is made of: examples read from files, token ids with labels, scores. Torch-free.

A task reads files into examples, encodes them, and turns what the model says back into answers,
scores and a report. One module a kind; `finetune.tasks.task_of` finds it.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from finetune.tasks.config import TaskKeys
from finetune.tokenizer import TextTokenizer
from model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = -100  # a label that is not counted; as in model.heads, which needs torch
# Of every other metric: the higher, the better.
LOWER_IS_BETTER = ("loss", "perplexity", "mse", "hamming_loss")
SHOWN = 3  # problems of one file that are spelled out

Indices = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]
Outputs = list[npt.NDArray[Any]]  # what is kept of the model's output, an array an item


class Example(Protocol):
    """One example of a file. Every task has its own frozen dataclass."""

    @property
    def line(self) -> int:
        """Where it begins in its file, from 1."""

    @property
    def text(self) -> str:
        """All that the model reads of it: two with the same text tell it the same."""

    @property
    def stratum(self) -> str:
        """What a split keeps in proportion: its class; empty where there is none."""


class Problem(NamedTuple):
    """What is wrong with a line."""

    line: int
    text: str


class Reading(NamedTuple):
    """What a file holds and what is wrong with it, each problem with its line."""

    examples: list[Any]
    problems: list[str]


@dataclass(frozen=True)
class Encoded:
    """Token ids of many rows, end to end, and what the model shall say of them.

    An item is what a batch is made of: one row, or `rows_per_item` rows. `labels` begins with one
    entry an item, (N, …), or has one a token where `is_token_level`.
    """

    examples: Sequence[Any]
    tokens: npt.NDArray[np.int32]  # (sum of lengths,)
    starts: Indices  # (rows + 1,)
    labels: npt.NDArray[Any]
    truncated: int  # examples cut at the maximum length
    segments: npt.NDArray[np.int8] | None = None  # (sum of lengths,): 1 in a second text
    rows_per_item: int = 1
    is_token_level: bool = False

    def __len__(self) -> int:
        return (len(self.starts) - 1) // self.rows_per_item

    @property
    def lengths(self) -> Indices:
        """Tokens of each item, (N,)."""
        found: Indices = np.diff(self.starts[:: self.rows_per_item])
        return found

    def counts(self, indices: Indices) -> int:
        """How many labels these items have that count in the loss."""
        if self.is_token_level:
            return sum(int((self._row(self.labels, i) != IGNORE_INDEX).sum()) for i in indices)
        return len(indices)

    def batch(self, indices: Indices, pad_id: int) -> Arrays:
        """Make the model's arguments for these items.

        input_ids and attention_mask (B, T), or (B, rows_per_item, T), T being the longest row of
        these; token_type_ids alike where there are segments; labels (B, …) or (B, T).
        """
        rows = (indices[:, None] * self.rows_per_item + np.arange(self.rows_per_item)).ravel()
        out: Arrays = pad([self._row(self.tokens, row) for row in rows], pad_id)
        if self.segments is not None:
            segments = [self._row(self.segments, row) for row in rows]
            out["token_type_ids"] = padded(segments, 0)
        if self.rows_per_item > 1:
            out = {k: v.reshape(len(indices), self.rows_per_item, -1) for k, v in out.items()}
        if self.is_token_level:
            labels = [self._row(self.labels, row) for row in rows]
            out["labels"] = padded(labels, IGNORE_INDEX)
        else:
            out["labels"] = self.labels[indices]
        return out

    def training_batch(self, indices: Indices, pad_id: int, draw: int) -> Arrays:
        """As `batch`, to learn from; what is left to chance is a pure function of `draw`."""
        return self.batch(indices, pad_id)

    def fingerprint(self) -> str:
        """Hash token ids and labels: two equal ones train the same model."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.starts, self.labels, self.segments):
            if array is not None:
                digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()

    def row(self, index: int) -> npt.NDArray[np.int32]:
        """Return the token ids of one row."""
        found: npt.NDArray[np.int32] = self._row(self.tokens, index)
        return found

    def _row(self, values: npt.NDArray[Any], index: Any) -> npt.NDArray[Any]:
        return values[self.starts[index] : self.starts[index + 1]]


def padded(rows: Sequence[npt.NDArray[Any]], fill: int) -> npt.NDArray[np.int64]:
    """Rows of unequal length as one (B, T) array, filled up at the end."""
    out = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return out


def pad(rows: Sequence[npt.NDArray[np.int32]], pad_id: int) -> Arrays:
    """Make input_ids and attention_mask, (B, T), T being the longest of these rows."""
    return {
        "input_ids": padded(rows, pad_id),
        "attention_mask": padded([np.ones(len(row), np.int8) for row in rows], 0),
    }


def join(rows: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.int32], Indices]:
    """Rows of token ids end to end, and where each starts (rows + 1,)."""
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return np.concatenate(rows).astype(np.int32), starts


class Task(ABC):
    """What a model learns. The methods are called in the order in which they stand here."""

    kind: ClassVar[str]
    head: ClassVar[str]  # of the model
    metrics: ClassVar[tuple[str, ...]]  # that may choose the best model; the first is the default
    is_of_vocabulary: ClassVar[bool] = False  # its head is the language model's own
    cuts_examples: ClassVar[bool] = False  # into several items: their number is known once encoded

    def __init__(self, keys: TaskKeys) -> None:
        self.keys = keys

    # --- reading

    @abstractmethod
    def stream(self, path: Path, *, labelled: bool = True) -> Iterator[Example | Problem]:
        """Yield the examples of a file, in constant memory, and what is wrong with its lines.

        labelled: False for text to predict on, which may lack the labels. Raises UserError where
        the file as a whole can't be read.
        """

    def read(self, path: Path) -> Reading:
        """Read a labelled file whole. Raises UserError where it can't be read."""
        examples: list[Example] = []
        problems: list[str] = []
        for found in self.stream(path):
            if isinstance(found, Problem):
                problems.append(f"{path}:{found.line}: {found.text}")
            else:
                examples.append(found)
        if not problems and not examples:
            problems.append(f"{path}: holds no examples")
        return Reading(examples, shorten(problems, path))

    def label_names(self, train: Sequence[Any]) -> list[str]:
        """Every class once, in the order of their numbers; empty where the task has none."""
        return []

    def check(self, name: str, examples: Sequence[Any], labels: Sequence[str]) -> list[str]:
        """What is wrong with the examples of a set as a whole; `name`: train, dev or test."""
        return []

    # --- the model

    def head_settings(self, labels: Sequence[str]) -> dict[str, Any]:
        """What the head's shape needs, as keys of ModelConfig: num_labels, id2label, …."""
        return {"num_labels": len(labels), "id2label": dict(enumerate(labels))} if labels else {}

    def head_of(self, shape: ModelConfig) -> str:
        """The head for a model of this shape."""
        return self.head

    def check_model(self, shape: ModelConfig, tokenizer: TextTokenizer) -> Iterator[str]:
        """What is wrong with a model for this task; by default, that it can't have the head."""
        if self.head_of(shape) not in shape.heads:
            yield (
                f"a {shape.family} model has no head {self.head_of(shape)!r}, which task.kind: "
                f"{self.kind} needs; take another model"
            )

    def tokenizer_settings(self, tokenizer: TextTokenizer) -> dict[str, Any]:
        """Keys of tokenizer_config.json that a saved model has beside its own."""
        return {}

    @abstractmethod
    def encode(
        self, examples: Sequence[Any], labels: Sequence[str], tokenizer: TextTokenizer
    ) -> Encoded:
        """Tokenise all examples and number their labels by their place in `labels`.

        Examples without labels (from `stream(…, labelled=False)`) get any that counts as none.
        """

    # --- what the model says

    def infer(self, net: Any, batch: Mapping[str, "Tensor"]) -> Outputs:
        """What is kept of the model's output for each item of a batch, on the host.

        The batch holds what `Encoded.batch` made, as tensors on the model's device. Called without
        gradients. Keep little: a set's outputs stay in memory together.
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.reduce(net(**inputs).logits, batch)

    def answer(
        self, net: Any, data: Encoded, indices: Indices, tokenizer: TextTokenizer
    ) -> Outputs | None:
        """What `predictions` reads of items without labels; None: the same as `infer`'s."""
        return None

    @abstractmethod
    def reduce(self, logits: "Tensor", batch: Mapping[str, "Tensor"]) -> Outputs:
        """From logits what is kept for each item of a batch."""

    def owners(self, data: Encoded) -> Indices:
        """Which example each item belongs to, (N,): its own, where there is one item for each."""
        return np.arange(len(data))

    @abstractmethod
    def scores(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, float]:
        """Every metric of a set, and `loss` where there is one."""

    def report(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> dict[str, Any]:
        """All that a report says of a set; at least the scores. JSON values only."""
        return dict(self.scores(data, outputs, labels))

    def report_text(self, data: Encoded, outputs: Outputs, labels: Sequence[str]) -> str:
        """Return the scores as a table for people."""
        scores = self.scores(data, outputs, labels)
        return "".join(f"{name:>20}  {value:.4f}\n" for name, value in scores.items())

    @abstractmethod
    def predictions(
        self, data: Encoded, outputs: Outputs, labels: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Yield what the model says of each example, in their order, as JSON values.

        `predicted` holds the answer, `label` the right one where the example has it.
        """


def shorten(problems: list[str], path: Path) -> list[str]:
    """The first problems of a file, and how many more there are."""
    if len(problems) <= SHOWN:
        return problems
    return [*problems[:SHOWN], f"{path}: and {len(problems) - SHOWN} more lines like these"]


def split_dev(examples: Sequence[Any], fraction: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Set a share of every class aside for development: (train, dev).

    A pure function of the seed, the texts and the classes, the same on every machine. Copies of a
    text stay on one side, and every class keeps at least one text for training.
    """
    draws = _draws(examples, seed)
    by_class: dict[str, list[bytes]] = {}
    for draw, example in zip(draws, examples, strict=True):
        by_class.setdefault(example.stratum, []).append(draw)
    # The text with the greatest draw always trains: `<` leaves it and its copies out.
    limits = {
        name: sorted(found)[min(max(1, round(fraction * len(found))), len(found) - 1)]
        for name, found in by_class.items()
    }
    train: list[Any] = []
    dev: list[Any] = []
    for draw, example in zip(draws, examples, strict=True):
        (dev if draw < limits[example.stratum] else train).append(example)
    return train, dev


def _draws(examples: Sequence[Any], seed: int) -> list[bytes]:
    """A number for each example that depends on its text and the seed alone."""
    return [
        hashlib.sha256(f"{seed}\0{example.text}".encode(errors="surrogatepass")).digest()
        for example in examples
    ]


def folds_of(examples: Sequence[Any], folds: int, seed: int) -> list[int]:
    """The part, 0 to folds − 1, of each example: every class spread evenly over the parts.

    A pure function of the seed, the texts and the classes. Copies of a text are in one part, so
    that none is learned by the run that is tested on another.
    """
    draws = _draws(examples, seed)
    stratum_of: dict[bytes, str] = {}
    for draw, example in zip(draws, examples, strict=True):
        stratum_of.setdefault(draw, example.stratum)
    # Counted on from class to class: small classes must not all go to the first parts.
    order = sorted(stratum_of, key=lambda draw: (stratum_of[draw], draw))
    part_of = {draw: place % folds for place, draw in enumerate(order)}
    return [part_of[draw] for draw in draws]


def seen_in(examples: Sequence[Any], train: Sequence[Any]) -> list[bool]:
    """Whether the very text of each example is in the training set, and so tells nothing new."""
    known = {example.text for example in train}
    return [example.text in known for example in examples]
