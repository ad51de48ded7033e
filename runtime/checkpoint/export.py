"""A checkpoint's fp32 weights, consolidated: what DeepSpeed's zero_to_fp32 gives for its own.

The names and shapes are the module's. Tensors are read from the master slices one at a time, a
file's worth is held in memory.
"""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
import torch
from safetensors.torch import save_file

from runtime.checkpoint.format import fsync_path, verify
from runtime.checkpoint.reader import TrainingState
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.zero_layout import MASTER

MAX_SHARD_BYTES = 5 * 10**9
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Exported(NamedTuple):
    """What was written."""

    directory: Path
    tensors: int
    bytes: int
    files: int


def export(checkpoint: Path, destination: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> Exported:
    """Write model.safetensors, or several files and their index, of fp32 master weights.

    Every byte of the checkpoint is verified first. The destination appears whole or not at all.
    Raises UserError for a checkpoint that is damaged or says no shapes, and for a destination that
    exists.
    """
    if destination.exists():
        raise _refusal(f"{destination}: exists already; name a new directory")
    if problems := verify(checkpoint):
        raise _refusal(f"{problems[0]}; name another checkpoint")
    state = TrainingState(checkpoint)
    shapes = _shapes(checkpoint, state)
    sizes = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    shards = _shards(sizes, max_shard_bytes)
    destination.absolute().parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(destination.absolute().parent).free
    if free < sum(sizes.values()):
        raise _refusal(f"{destination}: {sum(sizes.values())} bytes to write, {free} free")
    temporary = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    temporary.mkdir()
    try:
        for file, names in shards.items():
            save_file({name: _read(state, name, shapes[name]) for name in names}, temporary / file)
        if len(shards) > 1:
            weight_map = {name: file for file, names in shards.items() for name in names}
            metadata = {"total_size": sum(sizes.values())}
            content = {"metadata": metadata, "weight_map": weight_map}
            (temporary / INDEX).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
        for path in (*temporary.iterdir(), temporary):
            fsync_path(path)
        temporary.rename(destination)
        fsync_path(destination.absolute().parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(destination, len(sizes), sum(sizes.values()), len(shards))


def _shapes(checkpoint: Path, state: TrainingState) -> dict[str, tuple[int, ...]]:
    if not state.holds(MASTER):
        raise _refusal(
            f"{checkpoint}: holds no master weights: it is of fine-tuning, whose own weights are "
            "fp32; use `python -m model export`"
        )
    stored = state.values.get("shapes")
    if not isinstance(stored, dict) or not stored:
        raise _refusal(
            f"{checkpoint}: says no shapes of its parameters: it is older than this command; use "
            "`python -m pretrain export-fp32`, or resume the run once"
        )
    for name, shape in stored.items():
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise _refusal(f"{checkpoint}: {name} has no shape but {str(shape)[:80]}")
    return {name: tuple(shape) for name, shape in stored.items()}


def _read(state: TrainingState, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return state.read(name, MASTER, 0, math.prod(shape)).float().view(shape)


def _shards(sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """Which tensors each file holds, by file name, in order."""
    groups = list(_groups(sizes, limit))
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    total = len(groups)
    return {f"model-{n:05d}-of-{total:05d}.safetensors": g for n, g in enumerate(groups, start=1)}


def _groups(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    held: list[str] = []
    room = limit
    for name, size in sizes.items():
        if held and size > room:
            yield held
            held, room = [], limit
        held.append(name)
        room -= size
    yield held


def _refusal(message: str) -> UserError:
    return UserError(message, status=EXIT_BAD_INPUT)
