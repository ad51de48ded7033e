"""Long texts cut into windows that a model can see, in which every token is scored once."""

from collections.abc import Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """A stretch of a text, and which part of it is scored."""

    start: int  # first token that is seen
    first: int  # first token that is scored; those before it are context
    end: int  # behind the last token, seen and scored


def windows(n_tokens: int, length: int, stride: int) -> Iterator[Window]:
    """Windows of at most `length` tokens over `n_tokens`; each token is scored in one of them.

    From the second window on, `stride` new tokens are scored behind `length - stride` of context:
    a stride of `length` is the fastest, a small one gives every token nearly the whole context.
    """
    first = 0
    while first < n_tokens:
        new = length if first == 0 else stride
        end = min(first + new, n_tokens)
        yield Window(max(0, end - length), first, end)
        first = end
