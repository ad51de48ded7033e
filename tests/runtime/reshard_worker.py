"""Trains under every ZeRO stage, and goes on from what other topologies wrote.

usage: reshard_worker.py DIR OPTIMIZER JOB …

write    train under each stage, keep the state before and after KEPT steps, train on
read     go on from what was kept, under each stage
skip     train with skipped steps among the others
refuse   load what the other optimizer wrote
Run as ranks by test_reshard.py. Prints one JSON line on the main rank: of each topology the losses
and the sha256 of each rank's weights and moments at the end.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from runtime import dist, sections
from runtime.checkpoint.reader import TrainingState
from runtime.deepspeed_config import deepspeed_config
from runtime.engine import Engine, partitioned_construction
from runtime.errors import UserError, leave
from runtime.optim import build_optimizer
from runtime.selftest import PARTITION_ALL, SEQUENCES, _batch, _groups, _loss, _new_net

KEPT, LAST = 4, 8
LEAST_SWAPPED = 1024  # bytes of a tensor that NVMe takes, if DeepSpeed's own bound is lowered too
# Stage, and where the state is kept.
TOPOLOGIES: list[tuple[Any, Any]] = [
    *((stage, "none") for stage in (0, 1, 2, 3)),
    *((stage, "optimizer") for stage in (1, 3)),
]
# The others cut parameters as one of these does.
SOURCES = (
    "1 ranks ZeRO-1 none",
    *(f"2 ranks ZeRO-{stage} none" for stage in (0, 1, 3)),
    "2 ranks ZeRO-1 none untrained",
)


def new_engine(stage: Any, offload: Any, name: Any, ranks: dist.Ranks, **wide: Any) -> Engine:
    config = deepspeed_config(
        sections.Parallel(zero_stage=stage, offload=offload, **wide),
        "fp32",
        micro_batch_size=SEQUENCES // ranks.world_size // 2,
        accumulation_steps=2,
        world_size=ranks.world_size,
        max_grad_norm=1.0,
        device_type="cpu",
        extra={**PARTITION_ALL, "aio": {"block_size": LEAST_SWAPPED}},
        swap_directory=wide.get("nvme_path"),
    )
    with partitioned_construction(config, ranks):
        net = _new_net("fp32")
    optim = sections.Optim(name=name, lr=1e-2, max_grad_norm=1.0)
    return Engine(net, build_optimizer(_groups(net, name), optim), config, ranks)


def train(engine: Engine, first: int, last: int) -> list[float]:
    ranks = engine.ranks
    local = SEQUENCES // ranks.world_size
    weight = local / 2 / SEQUENCES
    losses = []
    for step in range(first, last):
        mine = torch.split(_batch(step)[ranks.rank * local :][:local], local // 2)
        result = engine.train_step(mine, lambda m, ids: _loss(m, ids) * weight, 1e-2)
        losses.append(float(result.loss))
    return dist.sum_over_ranks(losses)


def digests(engine: Engine) -> list[str]:
    found = hashlib.sha256()
    for s in sorted(engine.optimizer_slices(), key=lambda s: (s.parameter, s.key)):
        found.update(f"{s.parameter} {s.key} {s.start}".encode())
        found.update(s.tensor.detach().numpy().tobytes())
    return dist.gather_text(found.hexdigest())


def keep(engine: Engine, directory: Path) -> None:
    """As a checkpoint holds them."""
    rank = engine.ranks.rank
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{s.parameter}|{s.key}|{s.start}": s.tensor.detach().clone()
        for s in engine.optimizer_slices()
    }
    save_file(tensors, directory / f"optimizer_{rank:05d}.safetensors")
    values = {"optimizer_steps": engine.optimizer_steps()}
    (directory / "state.json").write_text(json.dumps(values))
    dist.gather_text("")  # until all have written


def name_of(ranks: int, stage: int, offload: str) -> str:
    return f"{ranks} ranks ZeRO-{stage} {offload}"


def write(root: Path, optimizer: str, ranks: dist.Ranks) -> Iterator[tuple[str, Any]]:
    for stage, offload in TOPOLOGIES:
        name = name_of(ranks.world_size, stage, offload)
        engine = new_engine(stage, offload, optimizer, ranks)
        if stage == 1:
            keep(engine, root / optimizer / f"{name} untrained" / "training")
        train(engine, 0, KEPT)
        keep(engine, root / optimizer / name / "training")
        yield name, {"losses": train(engine, KEPT, LAST), "digests": digests(engine)}


def read(root: Path, optimizer: str, ranks: dist.Ranks) -> Iterator[tuple[str, Any]]:
    for stage, offload in TOPOLOGIES:
        here = name_of(ranks.world_size, stage, offload)
        for kept in sorted((root / optimizer).iterdir()):
            if kept.name not in (here, *SOURCES):
                continue
            state = TrainingState(kept)
            engine = new_engine(stage, offload, optimizer, ranks)
            steps = state.values["optimizer_steps"]
            if offload == "none":
                train(engine, 20, 22)  # what a run in progress holds is replaced, all of it
            engine.load_optimizer_slices(state.read, steps)
            assert engine.optimizer_steps() == steps
            losses = train(engine, steps, LAST)[-LAST + KEPT :]
            yield f"{kept.name} → {here}", {"losses": losses, "digests": digests(engine)}


def refuse(root: Path, optimizer: str, ranks: dist.Ranks) -> Iterator[tuple[str, Any]]:
    """State of another optimizer; what each rank says to it."""
    other = next(path for path in sorted(root.iterdir()) if path.name != optimizer)
    state = TrainingState(next(path for path in other.iterdir() if "untrained" not in path.name))
    for stage, offload in TOPOLOGIES:
        engine = new_engine(stage, offload, optimizer, ranks)
        message = "loaded"
        try:
            engine.load_optimizer_slices(state.read, state.values["optimizer_steps"])
        except UserError as error:
            message = str(error)
        yield name_of(ranks.world_size, stage, offload), dist.gather_text(message)


def skip(_: Path, optimizer: str, ranks: dist.Ranks) -> Iterator[tuple[str, Any]]:
    """Steps of which the optimizer is told that they are not finite, at first and later on."""
    for stage, offload in TOPOLOGIES:
        engine = new_engine(stage, offload, optimizer, ranks)
        base: Any = getattr(engine._engine.optimizer, "optimizer", engine._engine.optimizer)
        step = base.step

        def refused(base: Any = base, step: Any = step) -> None:
            base.found_inf = torch.ones(())
            step()
            base.found_inf = torch.zeros(())

        for first, last in ((0, KEPT), (KEPT, LAST)):
            base.step = refused
            train(engine, 30 + first, 32 + first)
            base.step = step
            losses = train(engine, first, last)
        name = name_of(ranks.world_size, stage, offload)
        yield name, {"losses": losses, "digests": digests(engine)}


def main() -> None:
    root, optimizer = Path(sys.argv[1]), sys.argv[2]
    jobs = {"write": write, "read": read, "refuse": refuse, "skip": skip}
    ranks = dist.init("cpu", 60)
    found = {job: dict(jobs[job](root, optimizer, ranks)) for job in sys.argv[3:]}
    if ranks.is_main:
        print("\n" + json.dumps(found), flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
    leave(0)
