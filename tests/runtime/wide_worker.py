"""Trains under ZeRO at its widest: offload to host memory and disk, and hierarchical partitioning.

usage: wide_worker.py DIR OPTIMIZER LAYOUT …

A layout is a key of LAYOUTS. Each trains, takes a save of itself and of plain ZeRO-3 up again, and
is searched for flipped bits. Run as ranks by test_zero_wide.py. Prints one JSON line on the main
rank: by layout what was found.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from runtime import dist, zero_layout, zero_swap
from runtime.checkpoint.reader import TrainingState
from runtime.engine import Engine
from runtime.errors import leave
from runtime.selftest import SEQUENCES, _batch, _loss
from tests.runtime import reshard_worker
from tests.runtime.health_worker import flip
from tests.runtime.reshard_worker import KEPT, LAST, LEAST_SWAPPED, keep, new_engine

LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"offload": "none"},
    "host": {"offload": "all"},
    "hpz": {"offload": "none", "sharding": "hpz", "shard_ranks": 2},
    "hpz-host": {"offload": "all", "sharding": "hpz", "shard_ranks": 2},
    "disk": {"offload": "optimizer", "offload_to": "nvme"},
    "disk-all": {"offload": "all", "offload_to": "nvme"},
}


def swap_small_tensors() -> None:
    """Send to disk what DeepSpeed keeps in memory because it is less than a megabyte."""
    from deepspeed.runtime.swap_tensor import optimizer_utils, partitioned_param_swapper

    optimizer_utils.MIN_AIO_BYTES = LEAST_SWAPPED
    partitioned_param_swapper.MIN_AIO_BYTES = LEAST_SWAPPED


def train(engine: Engine, first: int, last: int) -> list[float]:
    """The loss of each step, which every rank knows."""
    total = reshard_worker.train(engine, first, last)
    return [loss / engine.ranks.world_size for loss in total]


def skips(engine: Engine) -> bool:
    """Whether a refused step leaves the master weights and moments as they are, bit for bit."""
    before = contents(engine)
    local = SEQUENCES // engine.ranks.world_size
    mine = torch.split(_batch(50)[engine.ranks.rank * local :][:local], local // 2)
    result = engine.train_step(mine, lambda m, ids: _loss(m, ids), 1e-2, accept=lambda _: False)
    return not result.applied and contents(engine) == before


def contents(engine: Engine) -> dict[str, bytes]:
    return {
        f"{s.parameter} {s.key} {s.start}": s.tensor.detach().numpy().tobytes()
        for s in engine.optimizer_slices()
    }


def swapped(engine: Engine) -> list[int]:
    """How many sub-groups, and how many parameters, are on disk between two steps."""
    optimizer: Any = engine._engine.optimizer
    on_disk = sum(not len(flat) for flat in optimizer.fp32_partitioned_groups_flat)
    parts = [p.ds_tensor.status.name for p in engine.module.parameters()]
    return [on_disk, parts.count("NOT_AVAILABLE")]


def second_copies(engine: Engine) -> list[int]:
    """How many elements of hpZ's copy a rank holds after an evaluation, and of its own parts."""
    with engine.evaluating() as module:
        _loss(module, _batch(60))
    parameters: list[Any] = list(engine.module.parameters())
    copies = [p.ds_secondary_tensor for p in parameters if p.ds_secondary_tensor is not None]
    return [sum(len(c) for c in copies), sum(p.ds_tensor.ds_numel for p in parameters)]


def drifts(engine: Engine) -> list[Any]:
    """What is found after a flip of one bit of rank 1's memory: in its weights, in its masters."""
    found = [engine.compare_replicas()]
    parameter: Any = engine.module.get_parameter("embedding.weight")
    if engine.ranks.rank == 1 and parameter.ds_tensor.status.name == "AVAILABLE":
        flip(parameter.ds_tensor, 5, 3)
    found.append(engine.compare_replicas())
    if engine.ranks.rank == 1:
        part = next(zero_layout.parts(engine._engine, 3, engine.ranks))
        owners = zero_layout._owners(engine._engine, 3)
        with zero_swap.present(engine._engine, 0, is_written=True):
            flip(owners[0].flat, 3, 22)
        found.append(part.parameter)
    return [*found, engine.compare_replicas()]


def main() -> None:
    root, optimizer, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ranks = dist.init("cpu", 120)
    swap_small_tensors()
    found = {}
    for name in names:
        stage, wide = 3, {"nvme_path": str(root), **LAYOUTS[name]}

        def make(stage: int = stage, wide: dict[str, Any] = wide) -> Engine:
            return new_engine(stage, name=optimizer, ranks=ranks, **wide)

        engine = make()
        shapes = engine.parameter_shapes()
        train(engine, 0, KEPT)
        keep(engine, root / f"{ranks.world_size}-{name}" / "training")
        disk, skipped = swapped(engine), skips(engine)
        copies = second_copies(engine)  # which the steps that follow must not use
        losses = train(engine, KEPT, LAST)
        again = {}
        for source in sorted(root.glob("*-*")):
            engine = make()
            train(engine, 20, 21)  # what a run in progress holds is replaced, all of it
            state = TrainingState(source)
            engine.load_optimizer_slices(state.read, state.values["optimizer_steps"])
            again[source.name] = train(engine, KEPT, LAST)
        whole = {n: list(t.shape) for n, t in engine.full_parameters(set(shapes))}
        found[name] = {
            "losses": losses,
            "again": again,
            "skipped": skipped,
            "whole": whole == shapes,
            "disk": disk,
            "copies": copies,
            "drifts": dist.gather_text(json.dumps(drifts(engine))),
        }
    if ranks.is_main:
        print("\n" + json.dumps(found), flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
    leave(0)
