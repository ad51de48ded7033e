"""Which tokens see which by their distance alone: causality and sliding windows."""

import torch
from torch import Tensor


def reach(window: int, *, causal: bool) -> int:
    """Length of the longest text in which a window hides nothing."""
    return window if causal else window // 2 + 1


def band(query: Tensor, key: Tensor, window: int | None, *, causal: bool) -> Tensor:
    """Where a query may look, as bool; `query` and `key` are positions that broadcast.

    A window counts the token itself and those before it, or half on each side where not causal.
    """
    allowed = key <= query if causal else torch.ones_like(key <= query)
    if window is not None:
        before = window - 1 if causal else window // 2
        allowed = allowed & (query - key <= before)
        if not causal:
            allowed = allowed & (key - query <= before)
    return allowed
