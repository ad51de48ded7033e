"""Houlsby's adapters: two small layers with a residual, after the linear maps of every layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """y + up(gelu(down(y))) of a linear map's output y (Houlsby et al. 2019, figure 2).

    `up` starts at zero, so that a fresh one changes nothing.
    """

    def __init__(self, inner: nn.Linear, width: int, std: float) -> None:
        super().__init__()
        self.inner = inner
        d = inner.out_features
        device = inner.weight.device
        self.houlsby_down = nn.Linear(d, width, device=device, dtype=torch.float32)
        self.houlsby_up = nn.Linear(width, d, device=device, dtype=torch.float32)
        nn.init.normal_(self.houlsby_down.weight, std=std)
        for zero in (self.houlsby_down.bias, self.houlsby_up.weight, self.houlsby_up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d_in) to (…, d_out)."""
        y: Tensor = self.inner(x)
        change: Tensor = self.houlsby_up(F.gelu(self.houlsby_down(y)))
        return y + change


def attach(targets: list[tuple[nn.Module, str]], width: int, std: float) -> None:
    """Wrap each linear map, given as its parent and its name there."""
    for parent, name in targets:
        inner = parent.get_submodule(name)
        assert isinstance(inner, nn.Linear)
        setattr(parent, name, Bottleneck(inner, width, std))
