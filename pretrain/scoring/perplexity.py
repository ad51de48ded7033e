"""Perplexity and bits per byte of texts under a checkpoint.

Causal models: the chance of each token given those before it, in windows. Masked models: each token
is hidden by itself and guessed from both sides ("pseudo-perplexity", Salazar et al. 2020, "Masked
Language Model Scoring"); the two are not comparable with one another.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_prep.tokenizer import DocumentTokenizer, SpecialTokens
from model import load_pretrained
from model.heads import IGNORE_INDEX, Model
from pretrain.scoring.windows import Window, windows
from runtime.errors import EXIT_BAD_INPUT, UserError

_LOSSLESS_LOOKS = 100  # documents that are decoded again, to see whether the tokenizer loses any


class Reading(NamedTuple):
    """How texts are put before a model."""

    seq_len: int | None = None  # tokens that it sees at once; None: all it can
    stride: int | None = None  # tokens that are scored in each window; None: half of them
    batch_size: int = 16  # windows in one forward pass
    max_tokens: int = 0  # masked models: tokens that are hidden in all, evenly spread; 0 = all


@dataclass
class Score:
    """What was found on one set of texts."""

    nats: float = 0.0  # of all scored tokens
    scored: int = 0
    tokens: int = 0
    documents: int = 0
    bytes: int = 0  # of the texts in UTF-8
    characters: int = 0
    words: int = 0  # separated by white space
    unknown: int = 0  # tokens that stand for text the tokenizer has no token for
    lossy: int = 0  # of the first documents, those that come back otherwise than they went in

    def metrics(self) -> dict[str, float]:
        """Every number by its usual name; bits per byte do not depend on the tokenizer."""
        if not self.scored:
            return {}
        nats = self.nats / self.scored
        whole = nats * self.tokens  # equals self.nats where every token was scored
        return {
            "perplexity": _exp(nats),
            "nats_per_token": nats,
            "bits_per_byte": whole / math.log(2) / max(self.bytes, 1),
            "nats_per_character": whole / max(self.characters, 1),
            "word_perplexity": _exp(whole / max(self.words, 1)),
        }

    def counts(self) -> dict[str, int]:
        """How much was read."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "scored_tokens": self.scored,
            "unknown_tokens": self.unknown,
            "bytes": self.bytes,
        }


class Scorer:
    """A checkpoint with its tokenizer, ready to read texts. Raises UserError, CheckpointError."""

    def __init__(
        self,
        directory: Path,
        reading: Reading,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.net: Model = load_pretrained(directory, dtype=dtype).to(device)
        self._tokenizer = DocumentTokenizer(directory)
        config = self.net.config
        if self._tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{directory}: its tokenizer has {self._tokenizer.vocab_size} tokens, its model "
                f"{config.vocab_size}; they do not belong together",
                status=EXIT_BAD_INPUT,
            )
        self.is_masked = not config.causal
        length = _seq_len(reading, config.max_seq_len)
        view: _Causal | _Masked
        if self.is_masked:
            view = _Masked(self.net, SpecialTokens(directory), length, device)
        else:
            view = _Causal(self.net, config.bos_token_id, length, device)
        self._view = view
        stride = reading.stride or max(1, view.length // 2)
        if not 1 <= stride <= view.length:
            raise UserError(
                f"--stride: got {reading.stride}, expected 1 to {view.length}",
                status=EXIT_BAD_INPUT,
            )
        self.settings: dict[str, Any] = {
            "seq_len": length,
            "stride": stride,
            "max_tokens": reading.max_tokens if self.is_masked else 0,
        }
        self._stride, self._reading = stride, reading

    def score(self, texts: Callable[[], Iterable[str]]) -> Score:
        """Read all texts; an empty one counts as a document and nothing else.

        texts: gives them anew at each call; those for a masked model are counted first.
        """
        every = self._every(texts)
        found = Score()
        jobs = self._jobs(texts(), found, every)
        while batch := list(islice(jobs, self._reading.batch_size)):
            with torch.inference_mode():
                nats, scored = self._view.nats(batch)
            found.nats += nats
            found.scored += scored
        return found

    def _every(self, texts: Callable[[], Iterable[str]]) -> int:
        """Of a masked model's tokens, each how-manieth is hidden."""
        most = self._reading.max_tokens
        if not self.is_masked or most == 0:
            return 1
        total = sum(len(ids) for _, ids in self._encoded(texts()))
        return max(1, math.ceil(total / most))

    def _jobs(self, texts: Iterable[str], found: Score, every: int) -> Iterator["_Job"]:
        """One forward pass's rows, and the counts of what they come from."""
        unknown, place = self._tokenizer.unknown_id, 0
        for text, ids in self._encoded(texts):
            if found.documents < _LOSSLESS_LOOKS:
                found.lossy += self._tokenizer.decode(ids) != text
            found.documents += 1
            found.tokens += len(ids)
            found.bytes += len(text.encode(errors="surrogatepass"))
            found.characters += len(text)
            found.words += len(text.split())
            found.unknown += 0 if unknown is None else ids.count(unknown)
            for window in windows(len(ids), self._view.length, self._stride):
                if not self.is_masked:
                    yield _Job(ids, window, None)
                    continue
                for position in range(window.first, window.end):
                    if (place + position) % every == 0:
                        yield _Job(ids, window, position)
            place += len(ids)

    def _encoded(self, texts: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
        source = iter(texts)
        while batch := list(islice(source, 64)):
            for text, ids in zip(batch, self._tokenizer.encode(batch), strict=True):
                yield text, ids.tolist()


class _Job(NamedTuple):
    ids: list[int]  # of the whole text
    window: Window
    position: int | None  # of a token to hide


class _Causal:
    """Scores each token given those before it; the first one given the token that begins texts."""

    def __init__(self, net: Model, begin: int | None, seq_len: int, device: torch.device) -> None:
        self._net, self._begin, self._device = net, begin, device
        self.length = seq_len  # of tokens to predict

    def nats(self, jobs: list[_Job]) -> tuple[float, int]:
        """The sum over the scored tokens of a batch, and how many they are."""
        rows = [self._row(job) for job in jobs]
        inputs = _padded([row for row, _ in rows], 0, self._device)
        targets = _padded([target for _, target in rows], IGNORE_INDEX, self._device)
        # Padding stands behind the text, where causal attention does not look.
        return _nats(self._net, {"input_ids": inputs, "targets": targets})

    def _row(self, job: _Job) -> tuple[list[int], list[int]]:
        """(inputs, targets): what stands before each token of the window, and the token."""
        start, first, end = job.window
        before = job.ids[start - 1] if start else self._begin
        known = [] if before is None else [before]
        inputs = [*known, *job.ids[start : end - 1]]
        targets = [IGNORE_INDEX] * (first - start) + job.ids[first:end]
        # Without a token that begins texts, nothing says what a text's first one is.
        return inputs or [0], targets[len(targets) - len(inputs) :] if inputs else [IGNORE_INDEX]


class _Masked:
    """Scores each token given all others of its window."""

    def __init__(
        self, net: Model, roles: SpecialTokens, seq_len: int, device: torch.device
    ) -> None:
        if roles.mask_id is None:
            raise UserError(
                "the checkpoint's tokenizer names no mask token, without which a masked model "
                "cannot be asked",
                status=EXIT_BAD_INPUT,
            )
        self._net, self._device, self._mask = net, device, roles.mask_id
        self._before = [] if roles.cls_id is None else [roles.cls_id]
        self._after = [] if roles.sep_id is None else [roles.sep_id]
        self.length = max(1, seq_len - len(self._before) - len(self._after))

    def nats(self, jobs: list[_Job]) -> tuple[float, int]:
        """The sum over the hidden tokens of a batch, and how many they are."""
        rows, targets = [], []
        for ids, (start, _, end), position in jobs:
            assert position is not None
            seen = ids[start:end]
            seen[position - start] = self._mask
            row = [*self._before, *seen, *self._after]
            target = [IGNORE_INDEX] * len(row)
            target[position - start + len(self._before)] = ids[position]
            rows.append(row)
            targets.append(target)
        inputs = _padded(rows, 0, self._device)
        mask = _padded([[1] * len(row) for row in rows], 0, self._device)
        hidden = _padded(targets, IGNORE_INDEX, self._device)
        return _nats(self._net, {"input_ids": inputs, "attention_mask": mask, "targets": hidden})


def _nats(net: Model, batch: dict[str, Tensor]) -> tuple[float, int]:
    """Sum over the tokens to predict, whose scores alone are computed, and how many they are."""
    rows = (batch["targets"].flatten() != IGNORE_INDEX).nonzero()[:, 0]
    if len(rows) == 0:
        return 0.0, 0
    return float(net(**batch, rows=rows).loss.double()) * len(rows), len(rows)


def _padded(rows: list[list[int]], filler: int, device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=device)


def _seq_len(reading: Reading, most: int) -> int:
    asked = most if reading.seq_len is None else reading.seq_len
    if not 2 <= asked <= most:
        raise UserError(
            f"--seq-len: got {asked}, expected 2 to {most}, which the model can see at once",
            status=EXIT_BAD_INPUT,
        )
    return asked


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # beyond it a float has no room
