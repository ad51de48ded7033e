"""Which tokens see which: by their distance, and by what is known of them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # row, head, query, key: as bool


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


def rule(
    window: int | None,
    *,
    causal: bool,
    attention_mask: Tensor | None,
    documents: Tensor | None,
    prefix: Tensor | None,
) -> Rule:
    """Where a query may look; the rule takes indices that broadcast, of rows and of tokens in them.

    attention_mask: (B, T), 0 for padding. documents: (B, T), a token's document. prefix: (B, T)
    bool, True within a prefix, whose tokens see one another whole.
    """
    is_token = None if attention_mask is None else attention_mask.to(torch.bool)

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = band(query, key, window, causal=causal)
        if prefix is not None:
            allowed = allowed | (prefix[row, query] & prefix[row, key])
        if documents is not None:
            allowed = allowed & (documents[row, query] == documents[row, key])
        if is_token is not None:
            # A padding token may see itself: a query with nothing to look at has an undefined
            # softmax, and the NaN it returns on some backends would reach every weight through the
            # gradient.
            allowed = allowed & (is_token[row, key] | (key == query))
        return allowed

    return sees


def rows_of(known: Mapping[str, Tensor | None]) -> int | None:
    """How many rows have a rule of their own, by what is given to `rule`; None: they share one."""
    # Not by len(), which would bind an exported model to its number.
    return next((tensor.shape[0] for tensor in known.values() if tensor is not None), None)
