"""What one process holds at the peak of a run, by part. Imports no torch.

model.memory counts what the model needs. Added here is what a run has besides, read off the code
that allocates it (DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py and stage3.py): gradients in
buckets and flat copies, weights that ZeRO-3 gathers, the copy that a save is written from, and what
Python and its libraries take before the first tensor. The peak is the largest of a few moments of a
run (launch.estimate.moments). On a GPU it is what torch reserves plus what the driver takes; on a
CPU it is the resident memory of the process (VmHWM of /proc/PID/status).
"""

from typing import NamedTuple

from launch.estimate.devices import Device
from launch.estimate.layout import Layout
from launch.estimate.moments import Held, Tensors, held, moments, resident
from model.config import ModelConfig
from runtime.heap import IN_HEAP

MB = 1e6
# Resident of a training process without any tensor: Python, torch 2.13, DeepSpeed 0.19.8, what
# their first step loads, and the pages of their libraries; no more where there are several ranks.
CPU_RUNTIME = 400 * MB
_TENSORBOARD = 15 * MB
_SAVING = 50 * MB  # the threads that write and hash a save beside the training
_INDUCTOR = 40 * MB  # torch.compile's share of the process: it compiles in others
# Of a GPU, outside of what torch reserves: the context with its kernels, and NCCL's channels.
# Orders of magnitude of published nvidia-smi readings, hence the wide interval.
_CUDA_CONTEXT, _NCCL, _CUDA_SPREAD = 550 * MB, 700 * MB, 400 * MB
_CUDA_HOST = 3000 * MB  # of the host: a process with CUDA's libraries, and the data's workers
# torch's caching allocator: blocks are cut from segments of 20 MB and more, and the remainders of
# different sizes do not fit one another. Expected, at best, at worst.
_GAPS, _LEAST_GAPS, _MOST_GAPS = 0.04, 0.0, 0.12
_CPU_SPREAD = 0.10
_HEAP_GAPS = 0.10  # of the heap of small blocks: gaps that none fits; fitted to 25 runs


_PARTS = (
    *("weights", "gradients", "optimizer", "activations", "logits", "communication"),
    *("checkpoint", "fragmentation", "runtime"),
)
_IN_MOMENTS = _PARTS[:6]


class RunMemory(NamedTuple):
    """Bytes of the fullest rank at the peak of its run, by what they hold."""

    weights: float
    gradients: float
    optimizer: float  # fp32 masters and moments, on the device
    activations: float  # with what the backward pass makes again
    logits: float
    communication: float  # buckets, flat copies of them, weights that ZeRO-3 has gathered
    checkpoint: float  # the copy that a save is written from; on a GPU it is in the host's memory
    fragmentation: float  # freed, and not given back
    runtime: float  # Python and its libraries; of a GPU the context and NCCL
    low: float  # interval of the total
    high: float
    host: float  # of the host's memory, per rank: the mean of a node's
    moment: str  # of the peak

    @property
    def total(self) -> float:
        """Everything that must fit on the device."""
        return float(sum(getattr(self, name) for name in _PARTS))

    @property
    def reserved(self) -> float:
        """What torch.cuda.max_memory_reserved() counts of it."""
        return self.total - self.runtime


def run_memory(
    model: ModelConfig,
    layout: Layout,
    device: Device,
    *,
    head: str | None = None,
    predicted_fraction: float = 1.0,
    optimizer: str = "adamw",
    saves: str = "often",
    tensorboard: bool = True,
) -> RunMemory:
    """Bytes of one rank at its peak.

    head, predicted_fraction: as in `training_memory`. optimizer: adamw, muon or lion. saves:
    "often", or "at_end", where nothing is trained after the only one. Raises `ValueError` for a
    head that the family does not have.
    """
    is_cpu = device.name == "cpu"
    found = held(
        model,
        layout,
        is_cpu=is_cpu,
        head=head,
        predicted_fraction=predicted_fraction,
        optimizer=optimizer,
    )
    if is_cpu:
        return _on_cpu(found, layout, saves=saves, tensorboard=tensorboard)
    return _on_gpu(found, layout)


def _on_gpu(found: Held, layout: Layout) -> RunMemory:
    device, host = resident(found, layout)
    fixed = _sums(device)
    sizes = {name: _added(fixed, _sums(more)) for name, more in moments(found, layout).items()}
    moment = max(sizes, key=lambda name: sum(sizes[name].values()))
    parts = sizes[moment]
    states = sum(fixed.values())
    dynamic = sum(parts.values()) - states
    runtime = _CUDA_CONTEXT + (_NCCL if layout.n_ranks > 1 else 0.0)
    total = sum(parts.values()) + _GAPS * dynamic + runtime
    spread = _CUDA_SPREAD if layout.n_ranks > 1 else _CUDA_SPREAD / 2
    in_host = sum(_sums(host).values()) + CPU_RUNTIME + _CUDA_HOST
    in_host += found.saved.total / found.n_ranks
    return RunMemory(
        **parts,
        checkpoint=0.0,
        fragmentation=_GAPS * dynamic,
        runtime=runtime,
        low=total - (_GAPS - _LEAST_GAPS) * dynamic - 0.03 * (total - runtime) - spread,
        high=total + (_MOST_GAPS - _GAPS) * dynamic + 0.03 * (total - runtime) + spread,
        host=in_host,
        moment=moment,
    )


def _on_cpu(found: Held, layout: Layout, *, saves: str, tensorboard: bool) -> RunMemory:
    """The largest moment's large blocks, and of every kind of small block the most there ever was.

    Small ones stay in the heap when they are freed, and those of one kind rarely fit the gaps of
    another.
    """
    device, host = resident(found, layout)
    fixed = [*device, *host]
    at = {name: [*fixed, *more] for name, more in moments(found, layout).items()}
    copied = found.saved.largest_part(found.n_ranks)
    peak, least = "", -1.0
    for name, tensors in at.items():
        # Blocks of this size are given back when they are freed, smaller ones hardly ever.
        large = sum(t.size for t in tensors if t.block >= IN_HEAP)
        # The only save of a short run is its last act.
        large += copied if saves == "often" or name == "save" else 0.0
        if large > least:
            peak, least = name, large
    heap: dict[tuple[str, str], float] = {}
    for tensors in at.values():
        now: dict[tuple[str, str], float] = {}
        for t in tensors:
            if t.block < IN_HEAP:
                now[t.part, t.kind] = now.get((t.part, t.kind), 0.0) + t.size
        heap |= {name: max(size, heap.get(name, 0.0)) for name, size in now.items()}
    parts = _sums(at[peak])
    kept = (1 + _HEAP_GAPS) * sum(heap.values())
    kept -= sum(t.size for t in at[peak] if t.block < IN_HEAP)
    runtime = CPU_RUNTIME + _TENSORBOARD * tensorboard + _INDUCTOR * layout.compile
    runtime += _SAVING * (saves == "often")
    checkpoint = copied if saves == "often" or peak == "save" else 0.0
    total = sum(parts.values()) + kept + runtime + checkpoint
    return RunMemory(
        **parts,
        checkpoint=checkpoint,
        fragmentation=kept,
        runtime=runtime,
        low=(1 - _CPU_SPREAD) * total,
        high=(1 + _CPU_SPREAD) * total,
        host=total - checkpoint + min(checkpoint, found.saved.total / found.n_ranks),
        moment=peak,
    )


def _sums(tensors: Tensors) -> dict[str, float]:
    return {name: sum(t.size for t in tensors if t.part == name) for name in _IN_MOMENTS}


def _added(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: size + second[name] for name, size in first.items()}
