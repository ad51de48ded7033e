"""Fused operations. Each file holds one: a plain reference and, where it pays, a kernel."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Kernels = Literal["torch", "triton"]


class Fused(NamedTuple):
    """The operations that stand in for several of PyTorch's; None: PyTorch's own."""

    norm: Callable[..., Any] | None = None
    split_and_turn: Callable[..., Any] | None = None


def load(kernels: Kernels) -> Fused:
    """Return the operations of `kernels`; triton is not imported before this.

    Raises ImportError where it is not installed.
    """
    if kernels == "torch":
        return Fused()
    try:
        from model.kernels.norm import norm
        from model.kernels.rotary import split_and_turn
    except ImportError as error:
        raise ImportError(
            f"kernels: got triton, which cannot be imported ({error}); run pip install"
            " 'ingot[kernels]', or take torch"
        ) from error
    return Fused(norm, split_and_turn)
