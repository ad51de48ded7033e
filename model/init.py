"""Initial weights and optimizer parameter groups."""

import math
from typing import Any

from torch import nn

from model.config import ModelConfig


def residual_std(config: ModelConfig) -> float:
    """Standard deviation of the projections that write into the residual stream.

    GPT-2 divides by √(2·n_layers), so that the sum of all branches keeps its variance with depth
    (Radford et al. 2019, §2.3). Llama's class in transformers does not.
    """
    if config.family == "gpt2":
        return config.init_std / math.sqrt(2 * config.n_layers)
    return config.init_std


def initialise(net: nn.Module) -> None:
    """Draw every parameter anew from torch's global generator, in module order.

    Construction has done this already; call it after `to_empty` on a model built on the meta
    device.
    """
    for module in net.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into a decayed and an undecayed group for an optimizer.

    Matrices decay, embeddings included (as in GPT-3, nanoGPT and litgpt: a tied embedding is an
    output matrix, and an undecayed one grows without bound); norms and biases do not. Empty groups
    are left out.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            # By module first: a parameter that ZeRO-3 has partitioned looks one-dimensional.
            is_matrix = isinstance(module, (nn.Linear, nn.Embedding)) and name == "weight"
            (decayed if is_matrix or parameter.dim() >= 2 else undecayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": decayed, "weight_decay": weight_decay},
        {"name": "no_decay", "params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
