"""A training step that is ready to be timed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model import build
from model.heads import Model
from model.kernels import Kernels
from model.memory import Recompute


class Variant(NamedTuple):
    """How a model is stepped."""

    batch_size: int  # sequences
    recompute: Recompute  # as parallel.activation_checkpointing
    kernels: Kernels


class Prepared(NamedTuple):
    """A step, and what it steps."""

    step: Callable[[], None]
    net: Model
    batch: dict[str, Tensor]
    told: dict[str, Any]  # of its row


def draw(device: torch.device, *arguments: Any, **more: Any) -> Model:
    """Build a model with weights that are drawn on the device."""
    with torch.device(device):
        return build(*arguments, **more)
