"""Optimizers, built from the config."""

from collections.abc import Iterable
from typing import Any

import torch

from runtime.sections import Optim


def build_optimizer(groups: Iterable[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) in torch's fused form, which needs no compiler.

    `groups` are torch parameter groups, each with its own `weight_decay`.
    """
    return torch.optim.AdamW(
        list(groups), lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True
    )
