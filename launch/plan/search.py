"""Every layout that an ask allows, what each needs and takes, and which are best. Imports no torch.

The search is exhaustive: for each combination of ZeRO stage, sharding group, offload and what is
computed again, the micro-batches that divide the batch, from the largest that fits. Sequences are
not divided (`sequence_parallel` stays 1), since the engine cannot do it yet.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from launch.estimate.devices import Device
from launch.estimate.layout import Layout
from launch.estimate.memory import RunMemory, run_memory
from launch.estimate.network import Network
from launch.estimate.step_time import StepTime, step_time
from launch.plan.subject import Subject
from model.flops import Flops, flops_per_token
from model.memory import RECOMPUTE

# Micro-batches that fit are worth trying down to this part of the largest.
_WORTH_TRYING = 4
# Layouts that ask more of the host, the network or DeepSpeed's hooks must be so much faster to be
# chosen: less than the model's own error, in favour of what can go wrong less.
_OFFLOAD_DOUBT, _STAGE_3_DOUBT = 1.05, 1.02


class Ask(NamedTuple):
    """What to plan for."""

    subject: Subject
    device: Device
    network: Network
    gpus: int
    gpus_per_node: int
    seq_len: int
    global_batch_size: int  # sequences
    precision: str
    compile: bool
    host_memory: float  # bytes of a node
    nvme_path: str | None = None


class Candidate(NamedTuple):
    """A layout with what it needs and takes."""

    layout: Layout
    memory: RunMemory
    time: StepTime

    @property
    def tokens_per_second(self) -> float:
        """Positions per second over all ranks."""
        return self.layout.tokens_per_step / self.time.total_s


class Refused(NamedTuple):
    """A combination that does not fit even with the smallest micro-batch."""

    layout: Layout
    memory: RunMemory
    is_host: bool  # whether it is the host's memory that is short


class Found(NamedTuple):
    """All combinations: those that fit, fastest first, and those that do not."""

    fitting: list[Candidate]
    refused: list[Refused]


def search(ask: Ask) -> Found:
    """Try every combination."""
    fitting, refused = [], []
    for combination in combinations(ask):
        candidates = list(_fitting(ask, combination))
        if candidates:
            fitting.append(min(candidates, key=lambda one: (one.time.total_s, -_micro(one))))
        else:
            smallest = combination._replace(
                micro_batch_size=1, accumulation_steps=ask.global_batch_size // ask.gpus
            )
            memory = memory_of(ask, smallest)
            refused.append(Refused(smallest, memory, fits_device(ask, memory)))
    fitting.sort(key=_preference)
    return Found(fitting, refused)


def best_of(found: Found, count: int = 3) -> list[Candidate]:
    """The best that differ in more than their micro-batch and what they offload."""
    chosen: dict[tuple[int, int | None, str], Candidate] = {}
    for candidate in found.fitting:
        layout = candidate.layout
        chosen.setdefault((layout.zero_stage, layout.shard_ranks, layout.recompute), candidate)
    return list(chosen.values())[:count]


def _micro(candidate: Candidate) -> int:
    return candidate.layout.micro_batch_size


def _preference(candidate: Candidate) -> tuple[float, int, bool, int, bool]:
    """Faster first; of equal ones that which shards, offloads and computes again less."""
    layout = candidate.layout
    doubt = _OFFLOAD_DOUBT if layout.offload != "none" else 1.0
    doubt *= _STAGE_3_DOUBT if layout.zero_stage == 3 else 1.0
    return (
        candidate.time.total_s * doubt,
        layout.zero_stage,
        layout.offload != "none",
        RECOMPUTE.index(layout.recompute),
        layout.shard_ranks is not None,
    )


def combinations(ask: Ask) -> Iterator[Layout]:
    """Every legal way to shard, offload and compute again; micro-batches are still to choose."""
    base = Layout(ask.gpus, 1, 1, ask.seq_len, 1, precision=ask.precision, compile=ask.compile)
    for stage in _stages(ask):
        for offload, target in _offloads(ask, stage):
            for group in _groups(ask, stage, offload, target):
                for recompute in RECOMPUTE:
                    yield base._replace(
                        zero_stage=stage,
                        offload=offload,
                        offload_to=target,
                        shard_ranks=group,
                        recompute=recompute,
                    )


def _stages(ask: Ask) -> tuple[int, ...]:
    """Stage 0 takes a wrong first step in DeepSpeed unless all is fp32; one rank shards nothing."""
    if ask.gpus == 1 and ask.device.generation == "cpu":
        return (1,)
    return (1, 3) if ask.gpus == 1 else (1, 2, 3)


def _offloads(ask: Ask, stage: int) -> list[tuple[str, str]]:
    if ask.device.generation == "cpu":
        return [("none", "cpu")]
    found = [("none", "cpu"), ("optimizer", "cpu")]
    if stage == 3:
        found.append(("all", "cpu"))
        if ask.nvme_path is not None:
            found += [("optimizer", "nvme"), ("all", "nvme")]
    return [one for one in found if ask.gpus > 1 or stage == 1 or one[0] == "all"]


def _groups(ask: Ask, stage: int, offload: str, target: str) -> list[int | None]:
    """All ranks, or with ZeRO-3 those of a node (hpZ)."""
    if stage != 3 or ask.gpus <= ask.gpus_per_node or ask.gpus % ask.gpus_per_node:
        return [None]
    if ask.gpus_per_node == 1 or (offload == "all" and target == "nvme"):
        return [None]
    return [None, ask.gpus_per_node]


def _fitting(ask: Ask, combination: Layout) -> Iterator[Candidate]:
    """The largest micro-batch that fits and those not much smaller."""
    per_rank, largest = ask.global_batch_size // ask.gpus, 0
    # One micro-batch serves the smaller batches of a ramp too, where the ranks can share them out.
    sizes = [stage.global_batch_size for stage in ask.subject.ramp]
    smaller = [size // ask.gpus for size in sizes if size % ask.gpus == 0]
    for micro in sorted(divisors(math.gcd(per_rank, *smaller)), reverse=True):
        if micro * _WORTH_TRYING < largest:
            return
        layout = combination._replace(micro_batch_size=micro, accumulation_steps=per_rank // micro)
        memory = memory_of(ask, layout)
        if fits_device(ask, memory) and fits_host(ask, memory):
            largest = max(largest, micro)
            yield Candidate(layout, memory, time_of(ask, layout))


def divisors(number: int) -> list[int]:
    """All that divide it, in order."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def memory_of(ask: Ask, layout: Layout) -> RunMemory:
    """What one rank needs."""
    subject = ask.subject
    return run_memory(
        subject.model,
        layout,
        ask.device,
        head=subject.head,
        predicted_fraction=subject.predicted_fraction,
        optimizer=subject.optimizer,
    )


def time_of(ask: Ask, layout: Layout) -> StepTime:
    """What a step takes."""
    return step_time(
        ask.subject.model,
        layout,
        ask.device,
        ask.network,
        ask.gpus_per_node,
        head=ask.subject.head,
        predicted_fraction=ask.subject.predicted_fraction,
    )


def sharers(ask: Ask) -> int:
    """Ranks of one node."""
    return min(ask.gpus, ask.gpus_per_node)


def room(ask: Ask) -> float:
    """Bytes that one rank may take on its device; ranks of a CPU share the machine's memory."""
    is_cpu = ask.device.generation == "cpu"
    return ask.device.memory_bytes / (sharers(ask) if is_cpu else 1)


def fits_device(ask: Ask, memory: RunMemory) -> bool:
    """Whether the upper end of the interval fits the device."""
    return memory.high <= room(ask)


def fits_host(ask: Ask, memory: RunMemory) -> bool:
    """Whether the ranks of a node fit its memory."""
    return ask.device.generation == "cpu" or memory.host * sharers(ask) <= ask.host_memory


def flops(ask: Ask) -> Flops:
    """FLOPs of a token, both conventions."""
    subject = ask.subject
    return flops_per_token(subject.model, ask.seq_len, subject.head, subject.predicted_fraction)


def mfu(ask: Ask, candidate: Candidate) -> Flops:
    """Share of the devices' peak."""
    per_token, peak = flops(ask), ask.device.peak[ask.precision]
    if ask.device.generation == "cpu":
        peak /= sharers(ask)
    rate = candidate.tokens_per_second / (peak * ask.gpus)
    return Flops(per_token.full * rate, per_token.causal * rate)
