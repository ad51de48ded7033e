"""Initial weights and optimizer parameter groups."""

import math
from typing import Any, Literal

import torch
from torch import nn

from model.config import ModelConfig

Role = Literal["embedding", "hidden", "residual", "output", "head"]

_SCALED_RESIDUAL = ("gpt2", "modernbert")
_TRUNCATED = ("bert", "roberta", "modernbert")
_TRUNCATION = 2.0  # in standard deviations


def initial_std(config: ModelConfig, role: Role) -> float:
    """Standard deviation of the initial weights of one kind of matrix.

    embedding: tables. hidden: maps out of the residual stream. residual: the maps that write into
    it, which GPT-2 and ModernBERT divide by √(2·n_layers), so that the sum of all branches keeps
    its variance with depth (Radford et al. 2019, §2.3; Warner et al. 2024). output: the untied
    output matrix. head: the last, small matrices of the other heads.
    With muP hidden matrices shrink with the root of the width and the last ones with the width
    (Yang et al. 2022, "Tensor Programs V", table 3); an untied output matrix starts at zero
    (appendix D.2), so that first logits do not depend on the width either.
    """
    std = config.init_std
    if role == "residual" and config.family in _SCALED_RESIDUAL:
        std /= math.sqrt(2 * config.n_layers)
    if role in ("hidden", "residual"):
        std /= math.sqrt(config.width_ratio)
    elif role == "head":
        std /= config.width_ratio
    elif role == "output":
        std = std if config.mup_base_width is None else 0.0
    return std


def is_truncated(config: ModelConfig) -> bool:
    """Whether initial weights are drawn within two standard deviations, as BERT's are."""
    return config.family in _TRUNCATED


def draw(weight: torch.Tensor, std: float, *, truncated: bool) -> None:
    """Fill a weight with N(0, std²), cut at two standard deviations where asked."""
    if weight.is_meta:
        return  # torch's normal_ would load its compiler for it
    if std == 0:
        nn.init.zeros_(weight)
    elif truncated:
        nn.init.trunc_normal_(weight, std=std, a=-_TRUNCATION * std, b=_TRUNCATION * std)
    else:
        nn.init.normal_(weight, std=std)


def initialise(net: nn.Module) -> None:
    """Draw every parameter anew from torch's global generator, in module order.

    Construction has done this already; call it after `to_empty` on a model built on the meta
    device.
    """
    for module in net.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def parameter_groups(
    net: nn.Module, weight_decay: float, *, muon: bool = False
) -> list[dict[str, Any]]:
    """Split the trainable parameters into groups for an optimizer, empty ones left out.

    Matrices decay, embeddings included (as in GPT-3, nanoGPT and litgpt: a tied embedding is an
    output matrix, and an undecayed one grows without bound); norms and biases do not.
    muon: a group of the blocks' matrices, with their `splits`: of each parameter, the rows of the
    matrices that it consists of.
    A group's `lr_scale` multiplies the learning rate: with muP, matrices that the width enlarges
    take 1 / width_ratio of it (Yang et al. 2022, table 3, Adam), and as much more decay, so that
    lr · weight_decay stays. Muon's updates are orthogonal: they grow with the root of the width
    (Yang et al. 2023, "A Spectral Condition for Feature Learning", condition 1).
    """
    groups: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            kind, ratio = _kind(module, name, parameter, muon=muon)
            decay = 0.0 if kind == "no_decay" else weight_decay * ratio
            group = {"name": kind, "weight_decay": decay, "lr_scale": 1 / ratio, "params": []}
            groups.setdefault(kind, group)["params"].append(parameter)
            if kind == "muon":
                groups[kind].setdefault("splits", []).append(module.row_splits)
    order = ("muon", "decay", "decay_wide", "no_decay")
    return [groups[name] for name in order if name in groups]


def _kind(
    module: nn.Module, name: str, parameter: nn.Parameter, *, muon: bool
) -> tuple[str, float]:
    """The name of a parameter's group, and by what its learning rate is divided."""
    # By module first: a parameter that ZeRO-3 has partitioned looks one-dimensional.
    is_matrix = isinstance(module, (nn.Linear, nn.Embedding)) and name == "weight"
    if not is_matrix and parameter.dim() < 2:
        return "no_decay", 1.0
    ratio = float(getattr(module, "width_ratio", 1.0))
    if muon and is_matrix and getattr(module, "row_splits", None):
        return "muon", math.sqrt(ratio)
    return ("decay" if ratio == 1 else "decay_wide"), ratio
