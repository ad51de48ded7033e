"""Optimizers, built from the config."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from runtime.lion import Lion
from runtime.muon import Muon, square_norm
from runtime.sections import Optim


def build_optimizer(groups: Iterable[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) in torch's fused form, without a compiler; Muon; or Lion.

    `groups` are torch parameter groups, each with its own `weight_decay`. With Muon those with
    `splits` hold its matrices, the others AdamW's parameters.
    """
    if optim.name == "muon":
        return Muon(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, momentum=optim.momentum)
    if optim.name == "lion":
        return Lion(groups, lr=optim.lr, betas=optim.betas)
    return torch.optim.AdamW(
        list(groups), lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True
    )


def is_adamw(group: Mapping[str, Any]) -> bool:
    """Whether AdamW steps a group: Muon's has `splits`, and Lion's no `eps`."""
    return "splits" not in group and "eps" in group


def state_keys(group: Mapping[str, Any]) -> tuple[str, ...]:
    """What the optimizer keeps for each element of a group's parameters."""
    return ("exp_avg", "exp_avg_sq") if is_adamw(group) else ("momentum_buffer",)


_CHUNK = 1 << 24  # elements that a norm is computed over at a time: 64 MB per temporary tensor


@torch.no_grad()
def squared_norms(
    weight: torch.Tensor, state: Mapping[str, torch.Tensor], group: Mapping[str, Any], steps: int
) -> torch.Tensor:
    """‖Δw‖² and ‖w₀‖² of the last AdamW step, w₀ the weight before it; (2,) in double precision.

    Computed from what the step left behind, so that no copy of the weights must be kept.
    weight: (n,). state: its moments, (n,) each. group: its settings. steps: taken so far.
    """
    lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
    decay = lr * group["weight_decay"]
    squares = torch.zeros(2, dtype=torch.float64, device=weight.device)
    tensors = (weight, state["exp_avg"], state["exp_avg_sq"])
    for after, first, second in zip(*(torch.split(t, _CHUNK) for t in tensors), strict=True):
        adam = second.div(1 - beta2**steps).sqrt_().add_(eps).reciprocal_()
        adam.mul_(first).mul_(lr / (1 - beta1**steps))
        # The step was w = w₀ · (1 − decay) − adam.
        before = (after + adam).div_(1 - decay)
        update = adam.add_(before, alpha=decay)
        squares += torch.stack([square_norm(update), square_norm(before)])
    return squares
