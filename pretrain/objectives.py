"""What the model learns to predict: from a batch of the loader to a weighted loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Batch = dict[str, torch.Tensor]
IGNORED = -100  # a target that is not predicted


def predicted_tokens(batch: Batch) -> torch.Tensor:
    """How many targets of a batch count in the loss; a scalar on the batch's device."""
    return (batch["targets"] != IGNORED).sum()


def causal_lm(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the next token over the predicted targets, nats."""
    loss: torch.Tensor = module(**batch).loss
    return loss


OBJECTIVES: dict[str, Callable[[nn.Module, Batch], torch.Tensor]] = {"causal_lm": causal_lm}


def weighted(objective: str, global_tokens: float) -> Callable[[nn.Module, Batch], torch.Tensor]:
    """A micro-batch's share of the mean over all the targets of the global batch.

    The shares of all micro-batches and ranks add up to that mean exactly, however unevenly the
    predicted targets are spread (transformers#34191 is what averaging means does instead).
    """
    loss_of = OBJECTIVES[objective]

    def share(module: nn.Module, batch: Batch) -> torch.Tensor:
        return loss_of(module, batch) * (predicted_tokens(batch) / global_tokens)

    return share


def split(batch: Batch, size: int, device: torch.device) -> list[Batch]:
    """Cut a rank's share of a batch into micro-batches of `size` sequences, on the device."""
    sequences = batch["input_ids"].shape[0]
    return [_cut(batch, start, size, device) for start in range(0, sequences, size)]


def _cut(batch: Batch, start: int, size: int, device: torch.device) -> Batch:
    cut: dict[str, Any] = {
        name: tensor[start : start + size].to(device, non_blocking=True)
        for name, tensor in batch.items()
        if name != "cu_seqlens"
    }
    if "cu_seqlens" in batch:  # boundaries over the flattened (B·T) tokens of the whole share
        seq_len = batch["input_ids"].shape[1]
        low, high = start * seq_len, (start + size) * seq_len
        bounds = batch["cu_seqlens"]
        cut["cu_seqlens"] = (bounds[(bounds >= low) & (bounds <= high)] - low).to(device)
    return cut
