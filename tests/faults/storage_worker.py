"""Ranks that do nothing but save, one checkpoint after the other, as fast as they can.

usage: storage_worker ROOT ACKNOWLEDGED LAST_STEP BACKGROUND
They go on from the newest checkpoint. The main rank appends each step that counts as saved to the
file ACKNOWLEDGED. Every number that is saved follows from the step and from where it stands, so
that a mixture of two checkpoints cannot pass for one.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from runtime import dist
from runtime.checkpoint.reader import TrainingState
from runtime.checkpoint.saver import Saver
from runtime.dist import Ranks
from runtime.run_directory import newest_checkpoint
from runtime.sections import Checkpoint
from runtime.zero_layout import MASTER, Slice
from tests.faults import injection

# So that four ranks' shards are equal in size, but for the first.
PARAMETERS = {"embedding.weight": 4000, "head.weight": 4008, "head.bias": 8}
KEYS = (MASTER, "exp_avg", "exp_avg_sq")


def expected(step: int, parameter: str, key: str) -> torch.Tensor:
    """What a flattened tensor holds after a step."""
    numel = PARAMETERS[parameter]
    offset = 1000 * list(PARAMETERS).index(parameter) + 100 * KEYS.index(key)
    return torch.arange(numel) * 1e-4 + offset + step


class Counter:
    """What the store asks of an engine."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.step = 0

    def full_parameters(self, wanted: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in wanted:
            yield name, expected(self.step, name, MASTER)

    def optimizer_slices(self) -> Iterator[Slice]:
        for name, numel in PARAMETERS.items():
            share = -(-numel // self.ranks.world_size)
            start = self.ranks.rank * share
            for key in KEYS:
                whole = expected(self.step, name, key)
                yield Slice(name, key, start, whole[start : start + share].clone())

    def parameter_shapes(self) -> dict[str, list[int]]:
        return {name: [numel] for name, numel in PARAMETERS.items()}

    def optimizer_steps(self) -> int:
        return self.step


class Export:
    """One file, of the main rank."""

    def __init__(self, ranks: Ranks) -> None:
        self._names = list(PARAMETERS) if ranks.is_main else []

    def wanted(self) -> Collection[str]:
        return self._names

    def write(self, directory: Path, parameters: Mapping[str, torch.Tensor], create: Any) -> None:
        if self._names:
            with create(directory / "model.safetensors") as file:
                file.write(save(dict(parameters)))


def torn(checkpoint: Path, step: int) -> list[str]:
    """Where a checkpoint holds something else than that step."""
    state = TrainingState(checkpoint)
    found = [f"state.json: {state.values}"] if state.values["step"] != step else []
    weights = load_file(checkpoint / "model.safetensors")
    for name, numel in PARAMETERS.items():
        if not torch.equal(weights[name], expected(step, name, MASTER)):
            found.append(f"model.safetensors: {name}")
        for key in KEYS:
            if not torch.equal(state.read(name, key, 0, numel), expected(step, name, key)):
                found.append(f"optimizer: {key} of {name}")
    return found


def main(argv: list[str]) -> int:
    injection.arm()
    root, acknowledged, last = Path(argv[0]), Path(argv[1]), int(argv[2])
    ranks = dist.init("cpu", 60)
    newest = newest_checkpoint(root, ranks)
    engine: Any = Counter(ranks)
    if newest is not None:
        assert torn(newest.path, newest.step) == []
        engine.step = newest.step
    if ranks.is_main:
        print(f"begins after step {engine.step}", flush=True)
    settings = Checkpoint(background=argv[3] == "1")
    saver = Saver(root, ranks, settings, say=print, beat=lambda: None)
    known = engine.step
    while engine.step < last:
        engine.step += 1
        saver.save(engine.step, engine, Export(ranks), {"step": engine.step})
        if engine.step == last:
            saver.wait()
        if ranks.is_main and (saver.committed or 0) > known:
            known = saver.committed or 0
            file = os.open(acknowledged, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.write(file, f"{known}\n".encode())
            os.close(file)
    dist.shutdown()
    return 0
