"""Output matrix and cross entropy as one operation: the logits never leave it."""

import torch.nn.functional as F
from torch import Tensor


def reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """Mean cross entropy of the classes `hidden @ weightᵀ`, in plain PyTorch.

    hidden: (N, d). weight: (V, d). targets: (N,) int64, the class of each row or `ignore_index`.
    Returns a scalar in fp32: the mean over the rows that are not ignored, 0 when all are.
    """
    logits = F.linear(hidden, weight).float()  # (N, V)
    total = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")
    return total / (targets != ignore_index).sum().clamp(min=1)
