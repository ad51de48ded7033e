"""Pretraining continued on the text of a domain: the next token, or hidden ones (Devlin 2019)."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.readers import (
    SUFFIXES,
    TEXT_SUFFIXES,
    opened,
    read_records,
    suffix_of,
    unreadable,
)
from finetune.tasks.base import IGNORE_INDEX, Arrays, Encoded, Indices, Problem, join
from finetune.tasks.texts import text_problem
from finetune.tasks.vocabulary import Predicted, VocabularyTask
from finetune.tokenizer import TextTokenizer
from model.config import ModelConfig

_EVALUATED = 0  # the draw that dev and test sets are scored with, the same at every step
_MASK, _RANDOM = 0.8, 0.1  # of the hidden tokens; the others stay as they are


@dataclass(frozen=True)
class Document:
    """A text to learn the language of."""

    line: int
    text: str
    stratum: str = ""


@dataclass(frozen=True)
class Pieces(Predicted):
    """Documents cut into rows of at most `max_length` tokens; every token but the first counts."""

    owner: Indices | None = None  # (rows,): each one's document, in order


@dataclass(frozen=True)
class Hidden(Pieces):
    """Rows of which a share is hidden and predicted: of n ordinary tokens round(fraction · n).

    At least one; 8 in 10 of them become the mask, 1 in 10 any ordinary token, the others stay
    (Devlin et al. 2019). Which ones is a pure function of the draw and the row's number (of its
    content, where it is scored): the same on any number of ranks and after a resume. `labels` are
    the ids, -100 where nothing may be hidden.
    """

    fraction: float = 0.15
    mask_id: int = 0
    ordinary: Indices | None = None  # (V',): the ids that a random token is drawn from

    def counts(self, indices: Indices) -> int:
        """How many tokens of these rows are hidden."""
        return sum(self._hides(int(index)) for index in indices)

    def batch(self, indices: Indices, pad_id: int, draw: int = _EVALUATED) -> Arrays:
        """Hide tokens of these rows, packed into one, (1, N)."""
        ids, targets = zip(*(self._hidden(int(index), draw) for index in indices), strict=True)
        return self.arrays(ids, targets, pad_id)

    def training_batch(self, indices: Indices, pad_id: int, draw: int) -> Arrays:
        """Hide other tokens at each draw."""
        return self.batch(indices, pad_id, draw)

    def _hides(self, index: int) -> int:
        ordinary = int((self.labels_of(index) != IGNORE_INDEX).sum())
        return min(ordinary, max(1, round(self.fraction * ordinary)))

    def _hidden(self, index: int, draw: int) -> tuple[npt.NDArray[np.int64], ...]:
        """A row with some tokens hidden, and what they were: -100 elsewhere."""
        assert self.ordinary is not None
        ids, labels = self.row(index).astype(np.int64), self.labels_of(index)
        # What is scored must not depend on which texts it is scored with.
        of = zlib.crc32(ids.tobytes()) if draw == _EVALUATED else index
        generator = np.random.default_rng([draw, of])
        places = generator.permutation(np.flatnonzero(labels != IGNORE_INDEX))[: self._hides(index)]
        targets = np.full_like(ids, IGNORE_INDEX)
        targets[places] = ids[places]
        fate = generator.random(len(places))
        others = self.ordinary[generator.integers(len(self.ordinary), size=len(places))]
        ids[places[fate < _MASK]] = self.mask_id
        is_random = (fate >= _MASK) & (fate < _MASK + _RANDOM)
        ids[places[is_random]] = others[is_random]
        return ids, targets


class Language(VocabularyTask):
    """Texts without labels; the model goes on with the objective that it was pretrained with."""

    kind = "language"
    head = "masked_lm"
    cuts_examples = True

    def stream(self, path: Path, *, labelled: bool = True) -> Iterator[Document | Problem]:
        """Yield the documents of a file: records with a text, or paragraphs of a .txt file."""
        key = self.keys.text_key
        if suffix_of(path) in TEXT_SUFFIXES:
            yield from _paragraphs(path)
            return
        if suffix_of(path) not in SUFFIXES:
            known = ", ".join((*TEXT_SUFFIXES, *SUFFIXES))
            raise unreadable(path, f"its name must end in {known}, or one of them + .gz")
        for line, values, problem in read_records(path, [key], columns=self.keys.columns):
            wrong = problem or text_problem(values.get(key), key)
            yield Problem(line, wrong) if wrong else Document(line, values[key])

    def head_of(self, shape: ModelConfig) -> str:
        """The head that predicts the vocabulary, whichever the model reads with."""
        return "causal_lm" if shape.causal else self.head

    def check_model(self, shape: ModelConfig, tokenizer: TextTokenizer) -> Iterator[str]:
        """Whether the tokenizer has what hidden tokens become."""
        yield from super().check_model(shape, tokenizer)
        before, after = tokenizer.around
        if not shape.causal and tokenizer.mask_id is None:
            yield (
                f"the tokenizer of {tokenizer.directory} names no mask_token, which stands for "
                "hidden tokens; take a masked language model"
            )
        if self.keys.max_length < len(before) + len(after) + 2:
            yield (f"task.max_length: {self.keys.max_length} leaves no room for text; write more")

    def encode(
        self, examples: Sequence[Document], labels: Sequence[str], tokenizer: TextTokenizer
    ) -> Pieces:
        """Cut every document into rows, framed as the tokenizer frames a text. Nothing is lost.

        Of a causal model the last row of a document ends with the end-of-text token.
        """
        before, after = tokenizer.around
        is_causal = tokenizer.shape.causal
        ends = after or (list(tokenizer.eos_ids[:1]) if is_causal else [])
        size = tokenizer.max_length - len(before) - len(ends)
        special = np.array(sorted(tokenizer.special_ids))
        rows, wanted, owner = [], [], []
        for number, example in enumerate(examples):
            ids = tokenizer.encode_part(example.text)[0] or [tokenizer.pad_id]
            for start in range(0, len(ids), size):
                piece = ids[start : start + size]
                closes = ends if not is_causal or start + size >= len(ids) else []
                row = np.array([*before, *piece, *closes], np.int32)
                told = row.astype(np.int64)
                if not is_causal:
                    told[np.isin(row, special)] = IGNORE_INDEX
                told[:1] = IGNORE_INDEX if is_causal else told[:1]  # nothing comes before it
                rows.append(row)
                wanted.append(told)
                owner.append(number)
        tokens, starts = join(rows)
        shared = (examples, tokens, starts, np.concatenate(wanted), 0)
        owners = np.array(owner, np.int64)
        if is_causal:
            return Pieces(*shared, owner=owners)
        assert tokenizer.mask_id is not None  # check_model saw it
        ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), special)
        return Hidden(
            *shared,
            owner=owners,
            fraction=self.keys.mask_fraction,
            mask_id=tokenizer.mask_id,
            ordinary=ordinary,
        )

    def owners(self, data: Encoded) -> Indices:
        """Each row's document, (rows,)."""
        assert isinstance(data, Pieces)
        assert data.owner is not None
        return data.owner


def _paragraphs(path: Path) -> Iterator[Document]:
    """What blank lines separate, each with the line where it begins."""
    begins, lines = 0, list[str]()
    with opened(path) as stream:
        for number, data in enumerate(stream, start=1):
            line = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
            if line:
                begins = begins if lines else number
                lines.append(line)
            elif lines:
                yield Document(begins, "\n".join(lines))
                lines = []
    if lines:
        yield Document(begins, "\n".join(lines))
