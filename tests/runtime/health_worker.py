"""Steps that are not finite, and flipped bits, on real engines; run as ranks by test_bad_steps.py.

usage: health_worker.py STAGE PRECISION
Prints one JSON line on the main rank.
"""

import hashlib
import json
import sys
from typing import Any

import torch
from torch import nn

from runtime import dist, sections, zero_layout
from runtime.deepspeed_config import deepspeed_config
from runtime.dist import Ranks
from runtime.engine import Engine, StepResult
from runtime.errors import leave
from runtime.optim import build_optimizer
from runtime.selftest import (
    _OPTIM,
    PARTITION_ALL,
    SEQUENCES,
    _batch,
    _groups,
    _loss,
    _new_net,
)

ACCUMULATION = 2


def new_engine(stage: int, precision: str, ranks: Ranks) -> Engine:
    config = deepspeed_config(
        sections.Parallel(zero_stage=stage),
        precision,
        micro_batch_size=SEQUENCES // ranks.world_size // ACCUMULATION,
        accumulation_steps=ACCUMULATION,
        world_size=ranks.world_size,
        max_grad_norm=1.0,
        device_type="cpu",
        extra=PARTITION_ALL,
    )
    net = _new_net(precision)
    return Engine(net, build_optimizer(_groups(net), _OPTIM), config, ranks)


class Poison(torch.autograd.Function):
    """The value as it is; a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * float("inf")


def step(engine: Engine, number: int, fault: str = "", victim: int = 1) -> StepResult:
    """One step; a fault strikes the second micro-batch of one rank."""
    ranks = engine.ranks
    local = SEQUENCES // ranks.world_size
    mine = torch.split(_batch(number)[ranks.rank * local :][:local], local // ACCUMULATION)
    calls = iter(range(ACCUMULATION))

    def loss_of(module: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        loss = _loss(module, ids) / (ACCUMULATION * ranks.world_size)
        if next(calls) == 1 and ranks.rank == victim % ranks.world_size:
            if fault == "nan loss":
                loss = loss * float("nan")
            elif fault == "inf gradient":
                loss = Poison.apply(loss)
        return loss

    def accept(loss: float) -> bool:
        return fault != "refused"

    return engine.train_step(mine, loss_of, 1e-2, accept=accept)


def digests(engine: Engine) -> list[str]:
    """sha256 of every rank's weights, masters and moments, and the optimizer's step count."""
    found = hashlib.sha256()
    for _, parameter in engine.module.named_parameters():
        held = getattr(parameter, "ds_tensor", parameter).detach().contiguous()
        found.update(held.view(torch.uint8).numpy().tobytes())
    for piece in sorted(engine.optimizer_slices(), key=lambda s: (s.parameter, s.key)):
        found.update(piece.tensor.detach().numpy().tobytes())
    found.update(str(engine.optimizer_steps()).encode())
    return dist.gather_text(found.hexdigest())


def skipped_steps(engine: Engine) -> dict[str, Any]:
    """For each fault: was the step applied, did a bit change, and did the next step train?"""
    found = {}
    for number, fault in enumerate(("nan loss", "inf gradient", "refused"), start=2):
        before = digests(engine)
        result = step(engine, number, fault)
        unchanged = digests(engine) == before
        after = step(engine, number)
        agreed = set(dist.gather_text(str(result.applied)))
        found[fault] = [sorted(agreed), unchanged, after.applied and digests(engine) != before]
    return found


def flip(tensor: torch.Tensor, index: int, bit: int) -> None:
    words = tensor.detach().view(-1).view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
    words[index] ^= 1 << bit


def drifts(engine: Engine, stage: int) -> dict[str, Any]:
    """What is found in a clean engine, and after a flip of one bit of one rank's memory."""
    ranks, found = engine.ranks, {}
    found["clean"] = engine.compare_replicas()
    name, parameter = "embedding.weight", engine.module.get_parameter("embedding.weight")
    held = getattr(parameter, "ds_tensor", parameter)
    if ranks.rank == 1:
        flip(held, 5, 3)
    found["weight"] = engine.compare_replicas()
    if ranks.rank == 1:
        flip(held, 5, 3)
    if stage == 0:
        state = engine._engine.optimizer.state[parameter]
        moments = state["exp_avg_sq"] if ranks.rank == 1 else torch.zeros(4)
        flip(moments, 2, 20)
        found["state"] = engine.compare_replicas()
    else:
        part = next(zero_layout.parts(engine._engine, stage, ranks))
        name = part.parameter
        if ranks.rank == 0:
            flip(part.master, 3, 22)
        found["state"] = engine.compare_replicas()
    if ranks.is_main:
        found["name"] = name
    return found


def main() -> None:
    stage, precision = int(sys.argv[1]), sys.argv[2]
    ranks = dist.init("cpu", 60)
    engine = new_engine(stage, precision, ranks)
    first = step(engine, 0, "inf gradient")  # also where the optimizer has no state yet
    losses = [step(engine, number).loss for number in range(2)]
    found = {"first": first.applied, "losses": losses}
    found |= {"skipped": skipped_steps(engine), "drift": drifts(engine, stage)}
    if ranks.is_main:
        print("\n" + json.dumps(found), flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
    leave(0)
