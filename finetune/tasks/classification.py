"""Classification of whole texts: reading, labels, encoding, batches. Torch-free."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.readers import read_records
from finetune.tokenizer import TextTokenizer

HEAD = "sequence"
_SHOWN = 3  # problems of one file that are spelled out


@dataclass(frozen=True)
class Examples:
    """Texts with their labels, as written in the file."""

    texts: list[str]
    labels: list[str]
    lines: list[int]

    def pick(self, indices: Sequence[int]) -> "Examples":
        """Return the examples with these indices, in this order."""
        return Examples(
            [self.texts[i] for i in indices],
            [self.labels[i] for i in indices],
            [self.lines[i] for i in indices],
        )


class Reading(NamedTuple):
    """What a file holds and what is wrong with it, each problem with its line."""

    examples: Examples
    problems: list[str]


def read_examples(path: Path, text_key: str, label_key: str) -> Reading:
    """Read a labelled file. Raises UserError where the file as a whole can't be read."""
    examples = Examples([], [], [])
    problems: list[str] = []
    for record in read_records(path, (text_key, label_key)):
        problem = record.problem
        if problem is None:
            text, label = record.values[text_key], _label(record.values[label_key])
            problem = text_problem(text, text_key) or _label_problem(label, record, label_key)
        if problem is not None:
            problems.append(f"{path}:{record.line}: {problem}")
        else:
            assert label is not None
            examples.texts.append(text)
            examples.labels.append(label)
            examples.lines.append(record.line)
    if not problems and not examples.texts:
        problems.append(f"{path}: holds no examples")
    if len(problems) > _SHOWN:
        problems[_SHOWN:] = [f"{path}: and {len(problems) - _SHOWN} more lines like these"]
    return Reading(examples, problems)


def text_problem(text: Any, key: str) -> str | None:
    """Say what is wrong with a text, or None."""
    if not isinstance(text, str):
        return f"{key!r} must be text, got {type(text).__name__}"
    return None if text.strip() else f"{key!r} is empty; remove the line or fill it in"


def _label(value: Any) -> str | None:
    """A label's name: 1 in JSON and 1 in CSV are the same class."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value).strip()
    return None


def _label_problem(label: str | None, record: Any, key: str) -> str | None:
    if label is None:
        kind = type(record.values[key]).__name__
        return f"{key!r} must be a word or a whole number, got {kind}"
    return None if label else f"{key!r} is empty; give every text a label"


def label_names(labels: Sequence[str]) -> list[str]:
    """List every class once: in numerical order where all are numbers, else alphabetically."""
    names = set(labels)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def unknown_labels(examples: Examples, known: Sequence[str]) -> list[tuple[str, int]]:
    """List the labels that are not known, each with the first line that has it."""
    found: dict[str, int] = {}
    for label, line in zip(examples.labels, examples.lines, strict=True):
        if label not in known:
            found.setdefault(label, line)
    return list(found.items())


def split_dev(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Set a share of every class aside for development: (train, dev).

    A pure function of the seed, the texts and the labels, the same on every machine. Copies of a
    text stay on one side, and every class keeps at least one text for training.
    """
    draws = [
        hashlib.sha256(f"{seed}\0{text}".encode(errors="surrogatepass")).digest()
        for text in examples.texts
    ]
    by_label: dict[str, list[bytes]] = {}
    for draw, label in zip(draws, examples.labels, strict=True):
        by_label.setdefault(label, []).append(draw)
    # The text with the greatest draw always trains: `<` leaves it and its copies out.
    limits = {
        label: sorted(found)[min(max(1, round(fraction * len(found))), len(found) - 1)]
        for label, found in by_label.items()
    }
    in_dev = [draw < limits[label] for draw, label in zip(draws, examples.labels, strict=True)]
    sides = ([i for i, is_dev in enumerate(in_dev) if is_dev is side] for side in (False, True))
    train, dev = (examples.pick(indices) for indices in sides)
    return train, dev


def seen_in(examples: Examples, train: Examples) -> int:
    """Count the examples whose very text is in the training set, and so tells nothing new."""
    known = set(train.texts)
    return sum(text in known for text in examples.texts)


# --- encoding --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """Token ids of many texts, end to end, and their classes."""

    tokens: npt.NDArray[np.int32]  # (sum of lengths,)
    starts: npt.NDArray[np.int64]  # (N + 1,)
    labels: npt.NDArray[np.int64]  # (N,)
    truncated: int  # texts cut at the maximum length

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, (N,)."""
        return np.diff(self.starts)

    def text(self, index: int) -> npt.NDArray[np.int32]:
        """Return the token ids of one text."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    def fingerprint(self) -> str:
        """Hash the token ids and classes: two equal ones train the same model."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.starts, self.labels):
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()


def encode(examples: Examples, names: Sequence[str], tokenizer: TextTokenizer) -> Encoded:
    """Tokenise all texts and number their labels by their place in `names`."""
    number = {name: i for i, name in enumerate(names)}
    parts: list[npt.NDArray[np.int32]] = []
    truncated = 0
    for chunk in _chunks(examples.texts, 1000):
        ids, cut = tokenizer.encode(chunk)
        parts += ids
        truncated += cut
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in parts])]).astype(np.int64)
    labels = np.array([number[label] for label in examples.labels], dtype=np.int64)
    return Encoded(np.concatenate(parts), starts, labels, truncated)


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def pad(texts: Sequence[npt.NDArray[np.int32]], pad_id: int) -> dict[str, npt.NDArray[np.int64]]:
    """Make input_ids and attention_mask, (B, T), T being the longest text of these."""
    longest = max(len(ids) for ids in texts)
    input_ids = np.full((len(texts), longest), pad_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, ids in enumerate(texts):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def collate(
    data: Encoded, indices: npt.NDArray[np.int64], pad_id: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Make the batch of these examples: input_ids and attention_mask (B, T), labels (B,)."""
    padded = pad([data.text(int(i)) for i in indices], pad_id)
    return {**padded, "labels": data.labels[indices]}


def distribution(labels: Sequence[str]) -> dict[str, int]:
    """Count each class, the most frequent first."""
    return dict(Counter(labels).most_common())
