"""An MLP's activation whose backward pass writes the gradient over the saved input.

No part of the model: what a kernel that works in place would do, in plain PyTorch and in one pass
by the compiler, for `benchmarks/kernels.py`. The input is lost, and the gradient has its memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.layers import ACTIVATIONS

GATED = ("swiglu", "geglu")
# Torch's own gradients of activations, which can write where they read.
_aten = torch.ops.aten
_TANH = partial(_aten.gelu_backward.grad_input, approximate="tanh")
_BACKWARD: dict[str, Callable[..., Tensor]] = {
    "swiglu": _aten.silu_backward.grad_input,
    "geglu": _aten.gelu_backward.grad_input,
    "gelu": _aten.gelu_backward.grad_input,
    "gelu_tanh": _TANH,
}


def as_in_the_model(kind: str) -> Callable[[Tensor], Tensor]:
    """What an MLP computes between its matrices: of (N, d_ff), or of gate and up, (N, 2·d_ff)."""
    activation = ACTIVATIONS[kind]
    if kind not in GATED:
        return activation

    def gated(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return activation(gate) * up

    return gated


def in_place(kind: str, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """The same, whose gradient is written over the input."""
    forward = as_in_the_model(kind)
    parts = 2 if kind in GATED else 1
    write = partial(_write, _BACKWARD[kind], ACTIVATIONS[kind])
    if compiled:
        forward = torch.compile(forward, dynamic=False)
        write = torch.compile(partial(_write_in_one_pass, ACTIVATIONS[kind]), dynamic=False)
    apply: Callable[..., Tensor] = _InPlace.apply
    return lambda x: apply(x, parts, forward, write)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        parts: int,
        forward: Callable[[Tensor], Tensor],
        write: Callable[..., None],
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.parts, ctx.write = parts, write
        return forward(x.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x = ctx.saved_tensors[0].detach()
        # Not as views of one tensor: the compiler would write all of that anew.
        ctx.write(gradient, *(part.data for part in x.chunk(ctx.parts, -1)))
        return x, None, None, None


def _write(
    backward: Callable[..., Tensor],
    activation: Callable[[Tensor], Tensor],
    gradient: Tensor,
    gate: Tensor,
    up: Tensor | None = None,
) -> None:
    if up is None:
        backward(gradient, gate, grad_input=gate)
        return
    of_activated = gradient * up
    torch.mul(gradient, activation(gate), out=up)
    backward(of_activated, gate, grad_input=gate)


def _write_in_one_pass(
    activation: Callable[[Tensor], Tensor],
    gradient: Tensor,
    gate: Tensor,
    up: Tensor | None = None,
) -> None:
    activated, pull = torch.func.vjp(activation, gate)
    (of_gate,) = pull(gradient if up is None else gradient * up)
    if up is not None:
        up.copy_(gradient * activated)
    gate.copy_(of_gate)
