"""Lion: the sign of a momentum as the update, also under ZeRO."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runtime.muon import square_norm

CHUNK = 1 << 24  # elements that are stepped at a time: 64 MB for their signs


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2.

    `found_inf`, where it is set, is a float tensor, the same on all ranks: with 1 a step leaves
    weights, momenta and step counts as they are, as torch's fused AdamW does.
    `is_measured`: whether a step also writes its `squares`.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float]
    ) -> None:
        super().__init__(list(groups), {"lr": lr, "betas": betas, "weight_decay": 0.0})
        self.is_measured = False
        # ‖Δw‖² and ‖w₀‖² of the last step that was measured, (2,) for each tensor.
        self.squares: dict[Tensor, Tensor] = {}
        self._stretches: Mapping[Tensor, Sequence[tuple[int, int]]] = {}

    def attach(self, stretches: Mapping[Tensor, Sequence[tuple[int, int]]]) -> None:
        """Take over ZeRO's flat tensors: (start, numel) of what is in them beside padding.

        Padding has no defined gradient, whose sign would count like any other.
        """
        self._stretches = stretches

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step on the gradients of the groups present: ZeRO shows one of them at a time."""
        assert closure is None
        for group in self.param_groups:
            self._step(group)

    def _step(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["momentum_buffer"] = torch.zeros_like(parameter)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if not parameters or (found_inf is not None and found_inf.item()):
            return
        torch._foreach_add_([self.state[p]["step"] for p in parameters], 1)
        for parameter in parameters if self.is_measured else ():
            self.squares[parameter] = torch.zeros(2, dtype=torch.float64, device=parameter.device)
        for batch in _batches(self._pieces(parameters)):
            self._update(batch, group)

    def _update(self, batch: "list[_Piece]", group: dict[str, Any]) -> None:
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        weights = [piece.weight for piece in batch]
        gradients = [piece.gradient for piece in batch]
        momenta = [piece.momentum for piece in batch]
        signs = torch._foreach_lerp(momenta, gradients, 1 - beta1)
        torch._foreach_sign_(signs)
        for piece, sign in zip(batch, signs, strict=True) if self.is_measured else ():
            update = (piece.weight * (-lr * decay)).add_(sign, alpha=-lr)
            squares = [square_norm(update), square_norm(piece.weight)]
            self.squares[piece.parameter] += torch.stack(squares)
        torch._foreach_mul_(weights, 1 - lr * decay)
        torch._foreach_add_(weights, signs, alpha=-lr)
        torch._foreach_lerp_(momenta, gradients, 1 - beta2)

    def _pieces(self, parameters: list[Tensor]) -> "Iterator[_Piece]":
        for parameter in parameters:
            assert parameter.grad is not None
            vectors = [
                parameter.detach().view(-1),
                parameter.grad.reshape(-1),
                self.state[parameter]["momentum_buffer"].view(-1),
            ]
            for start, numel in self._stretches.get(parameter, [(0, parameter.numel())]):
                stretch = [torch.split(v.narrow(0, start, numel), CHUNK) for v in vectors]
                for parts in zip(*stretch, strict=True):
                    yield _Piece(parameter, *parts)


class _Piece(NamedTuple):
    """At most CHUNK elements of a parameter, as vectors."""

    parameter: Tensor
    weight: Tensor
    gradient: Tensor
    momentum: Tensor


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that are stepped together: at most CHUNK elements."""
    batch: list[_Piece] = []
    held = 0
    for piece in pieces:
        if batch and held + piece.weight.numel() > CHUNK:
            yield batch
            batch, held = [], 0
        batch.append(piece)
        held += piece.weight.numel()
    if batch:
        yield batch
