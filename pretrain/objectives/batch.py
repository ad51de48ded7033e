"""Batches: what they hold, how they are counted, cut into micro-batches and weighted."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from data_prep.collate import IGNORED

Batch = dict[str, torch.Tensor]

TALLY = "tally"  # (B, 2): tokens that a row holds, without padding; and those that it left out


class Counts(NamedTuple):
    """What a batch holds, of one rank or of all."""

    predicted: float  # tokens in the loss
    pairs: float  # pairs in the loss
    tokens: float  # positions that are not padding
    replaced: float  # tokens of the data that pairs left out: cut off, or put another text for


def count(batch: Batch) -> Counts:
    """Count a batch as the loader gives it, on the host."""
    pairs = (batch["pair_labels"] != IGNORED).sum() if "pair_labels" in batch else 0
    tokens, replaced = batch[TALLY].sum(0).tolist()
    return Counts(int((batch["targets"] != IGNORED).sum()), int(pairs), tokens, replaced)


def split(batch: Batch, size: int, device: torch.device) -> list[Batch]:
    """Cut a rank's share of a batch into micro-batches of `size` sequences, on the device.

    Where not all targets are predicted, each also gets `rows` (predicted,) int64: where in its
    flattened targets those are. Found on the host, so that a GPU need not be waited for.
    """
    sequences = batch["input_ids"].shape[0]
    return [
        {name: _move(tensor, device) for name, tensor in _cut(batch, start, size).items()}
        for start in range(0, sequences, size)
    ]


def _cut(batch: Batch, start: int, size: int) -> Batch:
    cut = {
        name: tensor[start : start + size]
        for name, tensor in batch.items()
        if name not in ("cu_seqlens", TALLY)
    }
    rows = (cut["targets"].flatten() != IGNORED).nonzero()[:, 0]
    if len(rows) < cut["targets"].numel():
        cut["rows"] = rows
    if "cu_seqlens" in batch:  # boundaries over the flattened (B·T) tokens of the whole share
        seq_len = batch["input_ids"].shape[1]
        low, high = start * seq_len, (start + size) * seq_len
        bounds = batch["cu_seqlens"]
        cut["cu_seqlens"] = bounds[(bounds >= low) & (bounds <= high)] - low
    return cut


def _move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    # From ordinary memory a copy would wait for all that the GPU still has to do.
    return tensor.pin_memory().to(device, non_blocking=True)


def weighted(total: Counts) -> Callable[[nn.Module, Batch], torch.Tensor]:
    """A micro-batch's share of the mean over all the targets of the global batch.

    The shares of all micro-batches and ranks add up to that mean exactly, however unevenly the
    predicted targets are spread (transformers#34191 is what averaging means does instead). With
    pairs it is the sum of two means, each with its own number.
    """

    def share(module: nn.Module, batch: Batch) -> torch.Tensor:
        out = module(**batch)
        predicted = batch.get("rows", batch["targets"]).numel()
        loss: torch.Tensor = out.token_loss * (predicted / max(total.predicted, 1))
        if "pair_labels" in batch:
            pairs = (batch["pair_labels"] != IGNORED).sum()
            loss = loss + out.pair_loss * (pairs / max(total.pairs, 1))
        return loss

    return share
