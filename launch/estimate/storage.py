"""How large checkpoints are, what room they need, and what saving costs. Imports no torch."""

import math
from typing import NamedTuple

from launch.estimate.devices import Device
from launch.estimate.layout import Layout
from model.config import ModelConfig
from model.flops import parameters, parts
from model.memory import BYTES
from runtime.checkpoint.format import ROOM
from runtime.sections import Checkpoint

DISK_BANDWIDTH = 1e9  # bytes/s of all ranks together, where nobody says; NVMe writes 1 to 5 GB/s
_SLOWER, _FASTER = 3.0, 3.0  # a network file system; several drives
_FILE_BYTES = 5 * 10**9  # of weights, at most: model.hf.shards.MAX_SHARD_BYTES


class Size(NamedTuple):
    """Bytes of a checkpoint."""

    weights: float
    states: float  # fp32 masters, and moments

    @property
    def total(self) -> float:
        """All of it, but for what is small."""
        return self.weights + self.states

    def largest_part(self, n_ranks: int) -> float:
        """What the first rank copies and writes: its states, and whole files of weights.

        States are divided evenly; of the files every n-th is one rank's (model.hf.shards.Part).
        """
        starts = range(0, math.ceil(self.weights), n_ranks * _FILE_BYTES)
        return self.states / n_ranks + sum(min(_FILE_BYTES, self.weights - s) for s in starts)


class Saves(NamedTuple):
    """The checkpoints of a run."""

    size: float  # bytes of one
    number: int  # that the run writes
    kept: int  # at its end
    room: float  # bytes that are taken at most, with the one that is being written
    copy_s: float  # that training waits for: the copy to the host's memory
    write_s: float  # of writing, hashing and forcing to the disk
    write_low_s: float
    write_high_s: float
    stall_s: float  # that training waits in all
    share: float  # of a run's time


def checkpoint_size(model: ModelConfig, head: str, precision: str, optimizer: str) -> Size:
    """The size of a checkpoint. Of moments AdamW has two, Lion one, and Muon one of matrices."""
    numel = parameters(model, head)
    moments = (4 if optimizer == "lion" else 8) * numel
    if optimizer == "muon":
        hidden = (p for p in parts(model, head) if p.name.startswith(("attention.", "mlp.")))
        moments -= 4 * sum(p.parameters for p in hidden if len(p.shape) == 2)
    return Size(float(BYTES[precision] * numel), float(4 * numel + moments))


def saves_of(
    settings: Checkpoint,
    size: Size,
    steps: int,
    step_s: float,
    *,
    layout: Layout,
    device: Device,
    bandwidth: float | None = None,
) -> Saves:
    """The saves of a run of so many steps. bandwidth: of the disk, in bytes/s."""
    every = settings.every_steps
    number = steps // every + (steps % every > 0) if every else 1
    kept = number
    if settings.keep_last:
        further = steps // settings.keep_every if settings.keep_every else 0
        kept = min(number, settings.keep_last + further)
    room = size.total * (min(number, kept + 1) if number > kept else kept)
    rate = bandwidth or DISK_BANDWIDTH
    write = size.total / rate
    copied = size.largest_part(layout.n_ranks)
    copy = copied / (device.bandwidth / 2 if device.name == "cpu" else device.host_link)
    between = (every or steps) * step_s
    waits = write if not settings.background else max(0.0, write - between)
    # Nothing trains beside the last one.
    stall = number * copy + (number - 1) * waits + write
    total = steps * step_s + stall
    spread = (1.0, 1.0) if bandwidth else (_FASTER, _SLOWER)
    return Saves(
        size.total,
        number,
        kept,
        max(room, ROOM * size.total),
        copy,
        write,
        write / spread[0],
        write * spread[1],
        stall,
        (number * copy + (number - 1) * waits) / total if total else 0.0,
    )
