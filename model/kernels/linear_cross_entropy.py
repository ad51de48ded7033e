"""Output matrix and cross entropy as one operation: the logits never leave it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Mean cross entropy of the classes `hidden @ weightᵀ + bias`, in plain PyTorch.

    hidden: (N, d). weight: (V, d). targets: (N,) int64, the class of each row or `ignore_index`.
    bias: (V,). vocab_size: classes from there on only fill up the matrix. softcap: as in `logits`.
    Returns a scalar in fp32: the mean over the rows that are not ignored, 0 when all are.
    """
    scores = logits(hidden, weight, bias=bias, vocab_size=vocab_size, softcap=softcap)
    total = F.cross_entropy(scores.float(), targets, ignore_index=ignore_index, reduction="sum")
    return total / (targets != ignore_index).sum().clamp(min=1)


def logits(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Scores (…, vocab_size) of hidden states (…, d).

    The product has all rows of `weight`, a size that tensor cores like, and is cut afterwards.
    softcap: scores become cap · tanh(score / cap) (Gemma 2, 2024).
    """
    scores = F.linear(hidden, weight, bias)[..., :vocab_size]
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)
