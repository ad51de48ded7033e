"""Some steps in fp16, two of which overflow on one rank; run as ranks on a CPU and on a GPU.

On a CPU DeepSpeed refuses fp16, which is lifted here: PyTorch's operations have it.
Prints `learns` for each stage, after all that is asserted.
"""

import torch

from runtime import dist, sections
from runtime.deepspeed_config import deepspeed_config
from runtime.engine import Engine, StepResult, _import_deepspeed
from runtime.errors import leave
from runtime.optim import build_optimizer
from runtime.selftest import PARTITION_ALL, SEQUENCES, Stage, _batch, _groups, _loss, _new_net

SCALE_POWER = 8  # low enough for this network
TOO_LARGE = 1e6  # a gradient times this and the loss scale is beyond 65,504
STEPS = 10


def step(engine: Engine, factor: float = 1.0) -> StepResult:
    """One step on the same batch each time; the last rank's loss is taken times the factor."""
    ranks = engine.ranks
    local = SEQUENCES // ranks.world_size
    mine = _batch(0)[ranks.rank * local :][:local].to(ranks.device)
    factor = factor if ranks.rank == ranks.world_size - 1 else 1.0
    micro_batches = torch.split(mine, local // 2)
    weight = factor / (2 * ranks.world_size)
    return engine.train_step(micro_batches, lambda net, ids: _loss(net, ids) * weight, 1e-2)


def contents(engine: Engine) -> list[bytes]:
    """Master weights, moments, and this rank's own weights as the next pass sees them."""
    held = [s.tensor for s in engine.optimizer_slices()]
    held += [getattr(p, "ds_tensor", p).detach() for p in engine.module.parameters()]
    return [t.cpu().numpy().tobytes() for t in held]


def new_engine(stage: Stage, ranks: dist.Ranks) -> Engine:
    net = _new_net("fp16").to(ranks.device)
    config = deepspeed_config(
        sections.Parallel(zero_stage=stage),
        "fp16",
        micro_batch_size=SEQUENCES // ranks.world_size // 2,
        accumulation_steps=2,
        world_size=ranks.world_size,
        max_grad_norm=1.0,
        device_type=ranks.device.type,
        extra={**PARTITION_ALL, "fp16": {"initial_scale_power": SCALE_POWER}},
    )
    return Engine(net, build_optimizer(_groups(net), sections.Optim()), config, ranks)


def check(stage: Stage, ranks: dist.Ranks) -> None:
    engine = new_engine(stage, ranks)
    assert next(engine.module.parameters()).dtype == torch.float16
    first = [step(engine) for _ in range(STEPS)]
    assert all(result.applied for result in first)
    scale = engine.loss_scale_state()["cur_scale"]
    assert scale == 2**SCALE_POWER
    before, patience = contents(engine), engine.loss_scale_state()["cur_hysteresis"]
    assert patience == 2
    for overflows in range(1, patience + 1):
        result = step(engine, TOO_LARGE)
        assert not result.applied
        assert not result.grad_norm.isfinite()
        assert contents(engine) == before, "a step that overflowed has changed something"
        lowered = scale / 2 if overflows == patience else scale  # the first may be chance
        assert engine.loss_scale_state()["cur_scale"] == lowered
    assert engine.is_at_lowest_scale is False
    rest = [step(engine) for _ in range(STEPS)]
    assert all(result.applied for result in rest)
    assert engine.optimizer_steps() == 2 * STEPS
    assert contents(engine) != before
    losses = [first[0].loss, first[-1].loss, rest[0].loss, rest[-1].loss]
    assert losses == sorted(losses, reverse=True), losses
    assert rest[-1].loss < 0.7 * first[0].loss, losses


def main() -> int:
    """Every stage that has fp16."""
    ranks = dist.init("auto", 60)
    if ranks.device.type == "cpu":
        _import_deepspeed(ranks)
        from deepspeed.accelerator import get_accelerator

        type(get_accelerator()).is_fp16_supported = lambda self: True
    for stage in (1, 2, 3):
        check(stage, ranks)
        if ranks.is_main:
            print("learns", flush=True)
    dist.shutdown()
    return 0


if __name__ == "__main__":
    leave(main())
