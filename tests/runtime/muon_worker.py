"""Muon on flat tensors cut at random, against Muon on whole ones; run as ranks by test_muon.py.

Prints the largest difference of any weight or momentum, in units of the learning rate, and how many
pieces were empty.
"""

import random
from itertools import pairwise

import torch
import torch.distributed as torch_dist

from runtime import dist
from runtime.errors import leave
from runtime.muon import Matrices, Muon

SHAPES = [((8, 4, 4), 8), ((24,), 8), ((8,), 24), ((1,), 8), ((24, 24), 8), ((8,), 8)]
SETTINGS = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "momentum": 0.95}
STEPS, LAYOUTS = 3, 6

Bounds = list[int]  # of the ranks' stretches of one parameter


def cut(numel: int, ranks: int, chance: random.Random) -> Bounds:
    """Where the stretches begin and end; in some layouts most ranks hold nothing."""
    places = [0, numel] if chance.random() < 0.4 else range(numel + 1)
    return [0, *sorted(chance.choice(places) for _ in range(ranks - 1)), numel]


def compare(seed: int, ranks: dist.Ranks, dtype: torch.dtype) -> tuple[float, int]:
    """One layout: two flat tensors, each of some parameters."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    order = chance.sample(SHAPES, len(SHAPES))
    whole = [
        torch.nn.Parameter(torch.randn(sum(rows), columns, generator=generator))
        for rows, columns in order
    ]
    group = {"weight_decay": 0.1, "splits": [rows for rows, _ in order]}
    plain = Muon([{"params": whole, **group}], **SETTINGS)
    bounds = [cut(p.numel(), ranks.world_size, chance) for p in whole]
    mine = [slice(b[ranks.rank], b[ranks.rank + 1]) for b in bounds]

    def flat(tensors: list[torch.Tensor], half: slice) -> torch.Tensor:
        """This rank's stretches of some of the parameters, and padding."""
        pieces = [t.detach().flatten()[s] for t, s in zip(tensors[half], mine[half], strict=True)]
        return torch.cat([*pieces, torch.zeros(3)])

    halves = [slice(0, 3), slice(3, None)]
    flats = [torch.nn.Parameter(flat(whole, half)) for half in halves]
    optimizer = Muon([{"params": whole, **group}], **SETTINGS)
    placed = []
    for tensor, half in zip(flats, halves, strict=True):
        matrices, start = [], 0
        for (rows, columns), edges, own in zip(order[half], bounds[half], mine[half], strict=True):
            matrices.append(Matrices(rows, columns, tuple(pairwise(edges)), start))
            start += own.stop - own.start
        placed.append((tensor, matrices))
    optimizer.param_groups[0]["params"] = flats
    identity = {"rank": ranks.rank, "world_size": ranks.world_size, "device": ranks.device}
    optimizer.attach(placed, **identity, dtype=dtype)
    for _ in range(STEPS):
        for parameter in whole:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        gradients = [p.grad for p in whole]
        for tensor, half in zip(flats, halves, strict=True):
            tensor.grad = flat(gradients, half)
        plain.step()
        optimizer.step()
    found = [
        ((ours.detach() - flat(theirs, half)).abs().max() / SETTINGS["lr"]).item()
        for tensor, half in zip(flats, halves, strict=True)
        for ours, theirs in (
            (tensor, whole),
            (
                optimizer.state[tensor]["momentum_buffer"],
                [plain.state[p]["momentum_buffer"] for p in whole],
            ),
        )
    ]
    return max(found), sum(a == b for edges in bounds for a, b in pairwise(edges))


def main() -> None:
    ranks = dist.init("cpu", 60)
    for dtype in (torch.float32, torch.bfloat16):
        found = [compare(seed, ranks, dtype) for seed in range(LAYOUTS)]
        worst = torch.tensor(max(difference for difference, _ in found))
        torch_dist.all_reduce(worst, torch_dist.ReduceOp.MAX)
        if ranks.is_main:
            print(f"{dtype} {worst.item()} {sum(empty for _, empty in found)}", flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
    leave(0)
