"""Muon under ZeRO in bf16 against one whole Muon in bf16; run as ranks by test_muon.py.

Both are given the same gradients to the last bit: the loss is linear in the weights, and all
numbers are such that neither a sum over micro-batches or ranks nor a mean is rounded. What is
compared is then the optimizer alone: its momenta, and its iteration in 16 bit.
Prints a line for each stage and accumulation: the largest difference of the master weights from the
reference's, relative to how far those have gone, and of the momenta.
"""

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from runtime import dist, sections
from runtime.deepspeed_config import deepspeed_config
from runtime.engine import Engine
from runtime.errors import leave
from runtime.muon import Muon
from runtime.optim import build_optimizer
from runtime.selftest import PARTITION_ALL
from runtime.zero_layout import MASTER

# Rows of the matrices in each parameter, and their columns; of a vector, none.
PARAMETERS = [((24, 16), 16), ((16,), 40), ((16,), 16), ((37,), 16), ((8, 8), 16), ((), 16)]
STEPS, SHARES, LR = 4, 8, 0.02  # shares: of the gradient, over all micro-batches and ranks
SETTINGS = sections.Optim(name="muon", lr=LR)


class Weight(nn.Module):
    """One parameter, whose gradient is what it is given."""

    def __init__(self, rows: tuple[int, ...], columns: int) -> None:
        super().__init__()
        drawn = torch.randn(sum(rows), columns) if rows else torch.randn(columns)
        self.weight = nn.Parameter(drawn.bfloat16().float() / 4)

    def forward(self, gradient: Tensor) -> Tensor:
        return (self.weight * gradient.to(self.weight.dtype)).sum()


class Weights(nn.Module):
    """All of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(Weight(*shape) for shape in PARAMETERS)

    def forward(self, gradients: list[Tensor]) -> Tensor:
        return torch.stack([part(g) for part, g in zip(self.parts, gradients, strict=True)]).sum()


def share(step: int, index: int) -> list[Tensor]:
    """A part of a step's gradient: small whole numbers, whose sums bf16 holds without rounding."""
    generator = torch.Generator().manual_seed(100 * step + index)
    sizes = [(sum(rows), columns) if rows else (columns,) for rows, columns in PARAMETERS]
    return [torch.randint(-8, 9, size, generator=generator) / 64 for size in sizes]


def groups(net: Weights) -> list[dict[str, object]]:
    """Of matrices for Muon, and of the vector."""
    weights = [part.weight for part in net.parts]
    splits = [rows for rows, _ in PARAMETERS[:-1]]
    muon = {"params": weights[:-1], "weight_decay": 0.1, "lr_scale": 0.5, "splits": splits}
    return [muon, {"params": weights[-1:], "weight_decay": 0.0}]


def reference() -> dict[str, dict[str, Tensor]]:
    """Master weights and momenta by name, and how far the weights have gone."""
    net = Weights()
    start = [p.detach().clone() for p in net.parameters()]
    optimizer = build_optimizer(groups(net), SETTINGS)
    assert isinstance(optimizer, Muon)
    optimizer.attach([], rank=0, world_size=1, device=torch.device("cpu"), dtype=torch.bfloat16)
    for group in optimizer.param_groups:
        group["lr"] = LR * group.get("lr_scale", 1.0)
    for step in range(STEPS):
        shares = [share(step, index) for index in range(SHARES)]
        for parameter, parts in zip(net.parameters(), zip(*shares, strict=True), strict=True):
            parameter.grad = torch.stack(parts).sum(0)
        optimizer.step()
    return {
        name: {MASTER: p.detach(), "way": p.detach() - before, **optimizer.state[p]}
        for (name, p), before in zip(net.named_parameters(), start, strict=True)
    }


def differences(engine: Engine, want: dict[str, dict[str, Tensor]]) -> tuple[float, float]:
    """Largest of any parameter: of weights, by the norm of their way, and of the first moments."""
    found = {MASTER: 0.0, "momentum_buffer": 0.0}
    covered = 0
    for name, key, start, tensor in engine.optimizer_slices():
        if key in found and key in want[name]:
            expected = want[name][key].flatten()[start : start + len(tensor)]
            size = want[name]["way" if key == MASTER else key].norm()
            found[key] = max(found[key], float((tensor - expected).norm() / size))
            covered += len(tensor) * (key == MASTER)
    worst = torch.tensor([found[MASTER], found["momentum_buffer"]])
    torch_dist.all_reduce(worst, torch_dist.ReduceOp.MAX)
    (seen,) = dist.sum_over_ranks([float(covered)])
    assert seen == sum(values[MASTER].numel() for values in want.values())
    weights, momenta = worst.tolist()
    return weights, momenta


def trained(stage: int, accumulation: int, ranks: dist.Ranks) -> Engine:
    """The same steps under ZeRO."""
    net = Weights()
    config = deepspeed_config(
        sections.Parallel(zero_stage=stage),
        "bf16",
        micro_batch_size=1,
        accumulation_steps=accumulation,
        world_size=ranks.world_size,
        max_grad_norm=1e9,  # a factor of clipping is rounded
        device_type="cpu",
        extra=PARTITION_ALL,
    )
    engine = Engine(net, build_optimizer(groups(net), SETTINGS), config, ranks)
    each = SHARES // (accumulation * ranks.world_size)
    for step in range(STEPS):
        first = ranks.rank * accumulation * each
        batches = [
            [share(step, first + micro * each + index) for index in range(each)]
            for micro in range(accumulation)
        ]
        sums = [
            [torch.stack(parts).sum(0) for parts in zip(*batch, strict=True)] for batch in batches
        ]
        result = engine.train_step(sums, lambda module, batch: module(batch), LR)
        assert result.applied
    return engine


def main() -> int:
    """Every stage and accumulation."""
    ranks = dist.init("cpu", 60)
    # oneDNN may add up in another order where a batch has another size.
    torch.backends.mkldnn.set_flags(False)
    want = reference()
    for stage in (1, 2, 3):
        for accumulation in (1, 4):
            weights, momenta = differences(trained(stage, accumulation, ranks), want)
            if ranks.is_main:
                print(f"stage {stage} x {accumulation}: {weights:.1e} {momenta:.1e}", flush=True)
    dist.shutdown()
    return 0


if __name__ == "__main__":
    leave(main())
