"""How like a checkpoint's own texts those of a task are: its loss on them, and their vocabulary."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shards import Shards
from finetune.batches import pieces
from finetune.tasks.base import IGNORE_INDEX, pad
from finetune.tokenizer import TextTokenizer
from model import load_pretrained
from model.hf import CheckpointError, read_config
from runtime.checkpoint.format import TRAINING, read_json
from runtime.checkpoint.reader import STATE
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.records import read_metrics

SAMPLED = 256  # texts that the loss is computed on
_MASKED = 0.15  # share of the tokens, as in BERT
_BATCH = 32
_REFERENCE_TOKENS = 1 << 20  # of the pretraining text that the vocabulary is counted in

Rows = Sequence[npt.NDArray[np.int32]]
Counts = npt.NDArray[np.int64]


class Measured(NamedTuple):
    """What is known of a task's texts; None where it can't be. Losses: nats per token."""

    examples: int  # to train on
    unknown: float  # share of the tokens that the vocabulary doesn't have
    unigram_loss: float  # of one who knows how frequent each token is, and nothing else
    own_loss: float | None  # the checkpoint's, on a sample
    valid_loss: float | None  # the checkpoint's, on the validation set of its own run
    divergence: float | None  # Jensen–Shannon of the vocabularies, bits: 0 the same, 1 disjoint
    divergence_floor: float | None  # what as many tokens of the pretraining text itself have

    @property
    def explained(self) -> float | None:
        """Share of the unigram loss that the checkpoint saves; below 0 it is worse than that."""
        return None if self.own_loss is None else 1 - self.own_loss / self.unigram_loss


def measure(
    directory: Path, texts: Sequence[str], max_length: int, reference: str | None = None
) -> Measured:
    """Measure texts against a model directory, on the CPU; the same on every machine but rounding.

    reference: as the key transfer.reference. Raises UserError where it can't be read.
    """
    shape = read_config(directory)
    tokenizer = TextTokenizer(directory, shape, max_length)
    rows, _ = tokenizer.encode_all(texts)
    special = np.array(sorted(tokenizer.special_ids), dtype=np.int64)
    counts = _count(rows, special, shape.vocab_size)
    if not counts.sum():
        raise UserError(
            f"{directory}: its tokenizer makes nothing of the training texts; take another model",
            status=EXIT_BAD_INPUT,
        )
    # In an order of their own, so that a sorted file is sampled from everywhere.
    order = sorted(range(len(texts)), key=lambda i: hashlib.sha256(texts[i].encode()).digest())
    sample = [rows[i] for i in order[:SAMPLED]]
    divergence, floor = None, None
    pretrained_on = _reference_rows(directory, tokenizer, reference)
    if pretrained_on is not None:
        others = _count(pretrained_on, special, shape.vocab_size)
        divergence = jensen_shannon(counts, others)
        draw = np.random.default_rng(0).multinomial(counts.sum(), others / others.sum())
        floor = jensen_shannon(draw, others)
    unknown_id = tokenizer.id_of("unk_token")
    return Measured(
        examples=len(texts),
        unknown=0.0 if unknown_id is None else _share(rows, unknown_id, special),
        unigram_loss=unigram_loss(counts),
        own_loss=own_loss(directory, sample, tokenizer, special),
        valid_loss=_valid_loss(directory),
        divergence=divergence,
        divergence_floor=floor,
    )


def _count(rows: Rows, special: npt.NDArray[np.int64], vocab_size: int) -> Counts:
    """How often each token occurs (V,), special ones left out."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for row in rows:
        counts += np.bincount(row, minlength=vocab_size)[:vocab_size]
    counts[special[special < vocab_size]] = 0
    return counts


def _share(rows: Rows, token: int, special: npt.NDArray[np.int64]) -> float:
    frame = special[special != token]
    found = sum(int((row == token).sum()) for row in rows)
    whole = sum(int((~np.isin(row, frame)).sum()) for row in rows)
    return found / max(whole, 1)


def unigram_loss(counts: Counts) -> float:
    """Entropy of the tokens' distribution, nats; Miller & Madow 1955's correction for few tokens.

    counts: (V,). The plain estimate is too low by about (kinds − 1) / 2N.
    """
    seen, total = counts[counts > 0], int(counts.sum())
    shares = seen / total
    return float(-(shares * np.log(shares)).sum()) + (len(seen) - 1) / (2 * total)


def jensen_shannon(one: Counts, other: Counts) -> float:
    """Jensen–Shannon divergence of two distributions, in bits (Lin 1991); both (V,) counts."""
    p, q = one / one.sum(), other / other.sum()
    mean = (p + q) / 2
    return (_relative_entropy(p, mean) + _relative_entropy(q, mean)) / 2


def _relative_entropy(p: npt.NDArray[Any], q: npt.NDArray[Any]) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / q[some])).sum())


# --- the checkpoint's own loss ----------------------------------------------------------------


def own_loss(
    directory: Path, rows: Rows, tokenizer: TextTokenizer, special: npt.NDArray[np.int64]
) -> float | None:
    """Mean loss of a checkpoint's language model on rows of token ids, nats per token.

    Causal: of each token after the first. Masked: of 15 % of the tokens, all of them hidden, the
    same ones every time. Special tokens don't count. None where the directory has no such model,
    or nothing to hide tokens by.
    """
    try:
        net = load_pretrained(directory, dtype=torch.float32)
    except CheckpointError:
        return None
    mask_id = tokenizer.id_of("mask_token")
    if not net.config.causal and mask_id is None:
        return None
    total, counted = 0.0, 0
    generator = np.random.default_rng(0)
    order = np.argsort([-len(row) for row in rows], kind="stable")
    for piece in pieces(order, _BATCH):
        batch = pad([rows[i] for i in piece], tokenizer.pad_id)
        ids, is_token = batch["input_ids"], batch["attention_mask"] > 0
        may = is_token & ~np.isin(ids, special)
        if net.config.causal:
            may[:, 0] = False  # nothing precedes it
        elif mask_id is not None:
            may &= generator.random(ids.shape) < _MASKED
            batch["input_ids"] = np.where(may, mask_id, ids)
        batch["labels"] = np.where(may, ids, IGNORE_INDEX)
        if may.any():
            tensors = {name: torch.as_tensor(value) for name, value in batch.items()}
            with torch.inference_mode():
                loss = float(net(**tensors).loss)
            total, counted = total + loss * int(may.sum()), counted + int(may.sum())
    return total / counted if counted and math.isfinite(total) else None


def _valid_loss(directory: Path) -> float | None:
    """The checkpoint's loss on the validation set of its pretraining run, where that is there."""
    settings = _pretraining(directory)
    if settings is None:
        return None
    step = settings["step"]
    found = None
    for record in read_metrics(directory.parent.parent / "metrics.jsonl"):
        value = record.get("valid_loss")
        if record.get("step", math.inf) <= step and isinstance(value, float):
            found = value
    return found


def _pretraining(directory: Path) -> dict[str, Any] | None:
    """The stored state of a checkpoint of a pretraining run; None for anything else."""
    try:
        state: dict[str, Any] = read_json(directory / TRAINING / STATE)
        is_one = "objective" in state["config"] and isinstance(state["step"], int)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if is_one else None


# --- the pretraining text ---------------------------------------------------------------------


def _reference_rows(
    directory: Path, tokenizer: TextTokenizer, reference: str | None
) -> list[npt.NDArray[np.int32]] | None:
    if reference is not None:
        path = Path(reference)
        rows = list(_of_shards(path) if path.is_dir() else _of_file(path, tokenizer))
        if path.is_dir() and not _has_tokenizer(path, tokenizer):
            raise UserError(
                f"transfer.reference: {path} was prepared with another tokenizer than that of "
                f"{tokenizer.directory}; take the shards that the checkpoint was pretrained on",
                status=EXIT_BAD_INPUT,
            )
        return rows
    settings = _pretraining(directory)
    if settings is None:
        return None
    try:
        sources = [Path(source["path"]) for source in settings["config"]["data"]["train"]]
        # The checkpoint says where they were; they may be gone, or others by now.
        usable = [path for path in sources if _has_tokenizer(path, tokenizer)]
        found = [row for path in usable for row in _of_shards(path)]
    except (KeyError, TypeError, UserError, OSError):
        return None
    return found or None


def _has_tokenizer(shards: Path, tokenizer: TextTokenizer) -> bool:
    file = tokenizer.directory / "tokenizer.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() == Shards(shards).manifest.tokenizer.sha256


def _of_shards(path: Path) -> Iterator[npt.NDArray[np.int32]]:
    """Documents from everywhere in a directory, about as many tokens as are counted."""
    shards = Shards(path)
    mean = max(1, shards.tokens // max(1, len(shards)))
    wanted = min(len(shards), max(1, _REFERENCE_TOKENS // mean))
    for document in np.linspace(0, len(shards) - 1, wanted).astype(int):
        yield shards[int(document)].astype(np.int32)


def _of_file(path: Path, tokenizer: TextTokenizer) -> Iterator[npt.NDArray[np.int32]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"transfer.reference: {path}: cannot be read as text: {error}", status=EXIT_BAD_INPUT
        ) from error
    rows, _ = tokenizer.encode_all([line for line in lines if line.strip()])
    if not rows:
        raise UserError(f"transfer.reference: {path}: holds no text", status=EXIT_BAD_INPUT)
    yield from rows
