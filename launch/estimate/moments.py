"""What is in memory at each moment of a run at which it may peak. Imports no torch.

Read off DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py, stage3.py), whose names stand in the
comments, and off our own optimizers.
"""

from typing import Any, NamedTuple

from launch.estimate.layout import Layout
from launch.estimate.storage import Size
from model.config import ModelConfig
from model.flops import parameters, parts
from model.memory import (
    BYTES,
    activation_bytes_per_token,
    loss_memory,
    recomputed_bytes_per_token,
)
from runtime.deepspeed_config import deepspeed_config
from runtime.sections import Parallel

_CHUNK = 1 << 24  # numbers that are measured, or stepped by Lion, at a time (runtime.optim, .lion)
_SUB_GROUP = 100_000_000  # numbers that are swapped in at a time (runtime.deepspeed_config)
_MUON_BATCH = 1 << 22  # numbers that Muon makes orthogonal at a time (runtime.muon)
_MUON_COPIES = 5  # of them at once: stacked, divided by their norm, and products
_MUON_WIDE = 3  # in fp32 besides: directions, for the norm, and the update
# Of attention with dropout on a CPU, where torch keeps all scores: bytes for a pair and head.
_SCORE_BYTES = 16


class Tensor(NamedTuple):
    """Memory of one kind at one moment."""

    part: str  # a field of RunMemory
    size: float  # bytes of all of them
    block: float  # bytes of one: a process gives large ones back when they are freed
    kind: str = ""  # within the part


Tensors = list[Tensor]


class Held(NamedTuple):
    """What the moments of a run have in common."""

    size: int  # parameters
    share: float  # of them on this rank, where ZeRO divides them
    width: int  # bytes of a weight, a gradient, an activation
    shapes: tuple[tuple[int, int], ...]  # numbers of each kind of parameter, and how many there are
    group: float  # numbers of this rank's share that are updated at once
    largest_matrix: int  # that Muon makes orthogonal; 0 without it
    is_lion: bool
    moment_bytes: float  # of the optimizer's moments, this rank's share
    activations: float
    recomputed: float
    logits: float
    activation_block: float
    logit_block: float
    bucket: float  # numbers in a bucket for gradients
    gathered: float  # numbers that ZeRO-3 has whole at once
    n_ranks: int
    is_cpu: bool  # then what is offloaded takes the same memory
    stays: bool  # gradients of the only rank, where autograd made them (runtime.zero_gradients)
    is_fused: bool  # the update is one pass over them (runtime.one_pass)

    @property
    def saved(self) -> Size:
        """A checkpoint: weights, and masters with moments, each once."""
        states = 4 + self.moment_bytes / self.share
        return Size(float(self.width * self.size), states * self.size)

    @property
    def largest(self) -> int:
        """Numbers of the largest parameter."""
        return max(numel for numel, _ in self.shapes)


def held(
    model: ModelConfig,
    layout: Layout,
    *,
    is_cpu: bool,
    head: str | None,
    predicted_fraction: float,
    optimizer: str,
) -> Held:
    """Reckon sizes that all moments share. Raises `ValueError` for a head that there is not."""
    size, width = parameters(model, head), BYTES[layout.precision]
    share = size / layout.state_ranks
    shapes = tuple((part.parameters // part.copies, part.copies) for part in parts(model, head))
    hidden = [p for p in parts(model, head) if p.name.startswith(("attention.", "mlp."))]
    matrices = sum(p.parameters for p in hidden if len(p.shape) == 2)
    is_muon, is_lion = optimizer == "muon", optimizer == "lion"
    decayed = sum(p.parameters for p in parts(model, head) if len(p.shape) == 2)
    group = max(matrices, decayed - matrices) if is_muon else decayed
    kept, again = _activations(model, layout, head, predicted_fraction, is_cpu=is_cpu)
    tokens = layout.micro_tokens
    scored = loss_memory(
        model,
        round(predicted_fraction * tokens),
        dtype=layout.precision,
        head=head,
        device_type="cpu" if is_cpu else "cuda",
    )
    zero = _zero_section(layout, size, is_cpu=is_cpu)
    grouped = group / layout.state_ranks
    if layout.zero_stage == 3:  # which steps one sub-group after another
        grouped = min(grouped, float(zero["sub_group_size"]))
    return Held(
        size,
        share,
        width,
        shapes,
        grouped,
        max(p.parameters // p.copies for p in hidden) if is_muon else 0,
        is_lion,
        (8 * size - 4 * (size if is_lion else matrices if is_muon else 0)) / layout.state_ranks,
        tokens * kept,
        tokens * again,
        scored.total,
        float(tokens * model.d_ff * width),
        min(scored.matrix, scored.scores),
        float(zero["reduce_bucket_size"]),
        min(float(size), float(zero["stage3_max_live_parameters"])),
        layout.n_ranks,
        is_cpu,
        _stays(layout, is_cpu=is_cpu),
        _is_fused(layout, optimizer),
    )


def _zero_section(layout: Layout, size: int, *, is_cpu: bool) -> dict[str, Any]:
    """What DeepSpeed is told of buckets and groups for a model of so many parameters."""
    section: dict[str, Any] = deepspeed_config(
        Parallel(zero_stage=layout.zero_stage),
        "bf16",
        micro_batch_size=1,
        accumulation_steps=1,
        world_size=layout.n_ranks,
        max_grad_norm=1.0,
        device_type="cpu" if is_cpu else "cuda",
        parameters=size,
    )["zero_optimization"]
    return section


def _is_plain(layout: Layout) -> bool:
    """Whether ZeRO-1 or -2 steps where the gradients are."""
    return layout.zero_stage in (1, 2) and layout.offload == "none"


def _stays(layout: Layout, *, is_cpu: bool) -> bool:
    is_overlapped = layout.zero_stage == 2 and not is_cpu
    return layout.n_ranks == 1 and _is_plain(layout) and not is_overlapped


def _is_fused(layout: Layout, optimizer: str) -> bool:
    is_adamw = optimizer == "adamw" and layout.precision != "fp16"
    return layout.compile and _is_plain(layout) and is_adamw


def _activations(
    model: ModelConfig, layout: Layout, head: str | None, predicted: float, *, is_cpu: bool
) -> tuple[float, float]:
    """Bytes per token that are kept, and that the backward pass makes again."""
    kept = activation_bytes_per_token(
        model,
        dtype=layout.precision,
        head=head,
        predicted_fraction=predicted,
        recompute=layout.recompute,
    )
    again = recomputed_bytes_per_token(model, layout.precision, layout.recompute)
    if not is_cpu:
        return kept, again
    norms = scores = 0.0
    if model.norm == "rmsnorm":
        # Unfused: the input in fp32 and divided by its root mean square, twice in a layer.
        norms = 2 * model.d_model * (8 - BYTES[layout.precision])
    if model.dropout > 0:
        scores = _SCORE_BYTES * layout.seq_len * model.n_heads
    if layout.recompute == "block":
        return kept, again + norms + scores
    if layout.recompute == "attention":
        return kept + model.n_layers * norms / 2, again + norms / 2 + scores
    if layout.recompute == "mlp":
        return kept + model.n_layers * (norms / 2 + scores), again + norms / 2
    return kept + model.n_layers * (norms + scores), again


def _each(found: Held, part: str, width: float, share: float = 1.0, kind: str = "") -> Tensors:
    """One tensor for each parameter."""
    return [
        Tensor(part, width * numel * copies * share, width * numel, kind)
        for numel, copies in found.shapes
    ]


def _flat(part: str, width: float, numel: float, kind: str = "") -> Tensor:
    """One tensor of so many numbers."""
    return Tensor(part, width * numel, width * numel, kind)


def resident(found: Held, layout: Layout) -> tuple[Tensors, Tensors]:
    """What is there from one step to the next: on the device, and in the host's memory."""
    share, width, stage = found.share, found.width, layout.zero_stage
    if stage == 0:
        return [
            *_each(found, "weights", width, kind="weights"),
            *_each(found, "gradients", width, kind="own"),  # zeroed after a step, and kept
            *_each(found, "optimizer", found.moment_bytes / found.share, kind="moments"),
        ], []
    device: Tensors = []
    host: Tensors = []
    is_offloaded = layout.offload != "none"
    if is_offloaded and layout.offload_to == "nvme":
        return _on_disk(found, layout)
    states = [_flat("optimizer", found.moment_bytes / share, share)]
    # In fp32, ZeRO-3 has its optimizer work on the weights themselves.
    if stage < 3 or width < 4 or is_offloaded:
        states.append(_flat("optimizer", 4, share))
    (host if is_offloaded else device).extend(states)
    if is_offloaded:
        host.append(_flat("gradients", 4, share))  # fp32, from step to step
        host.append(_flat("weights", width, share, "buffer"))
    if stage < 3:
        device.append(_flat("weights", width, found.size))
        return device, host
    weights = _flat("weights", width, share)
    (host if layout.offload == "all" else device).append(weights)
    if layout.shard_ranks and layout.sharding == "hpz":
        device.append(_flat("weights", width, found.size / layout.group, "second copy"))
    # grad_partitions_flat_buffer, and the bucket of one dtype
    (host if is_offloaded else device).append(_flat("gradients", width, share))
    device.append(_flat("communication", width, found.bucket))
    return device, host


def _on_disk(found: Held, layout: Layout) -> tuple[Tensors, Tensors]:
    """ZeRO-3 with its states on NVMe: buffers in the host's memory that pieces pass through."""
    pieces = min(found.share, _SUB_GROUP)
    host = [_flat("optimizer", 4, pieces, f"buffer {number}") for number in range(4)]
    host.append(_flat("gradients", found.width, found.share))
    device = [_flat("communication", found.width, found.bucket)]
    if layout.offload != "all":
        device.append(_flat("weights", found.width, found.share))
    return device, host


def moments(found: Held, layout: Layout) -> dict[str, Tensors]:
    """What is there besides, at each moment that may be a run's peak."""
    again = [_block("activations", found.recomputed, found.activation_block, "again")]
    kept = [_block("activations", found.activations, found.activation_block)]
    before = _accumulated(found, layout)
    gathered = _gathered(found, layout)
    scores = [_block("logits", found.logits, found.logit_block)]
    return {
        "start": _start(found, layout),
        "logits": [*kept, *scores, *before, *gathered],
        "backward": [
            *(*kept, *again, *before, *gathered),
            *_bucket(found, layout),
            *_reduced_early(found, layout),
        ],
        "reduce": [*gathered, *_reduced(found, layout)],
        "scatter": _scattered(found, layout),
        "update": _update(found, layout),
        "measure": [] if found.is_lion else _measure(found, found.largest),
        "save": [],
    }


def _block(part: str, size: float, block: float, kind: str = "") -> Tensor:
    return Tensor(part, size, min(size, block), kind)


def _start(found: Held, layout: Layout) -> Tensors:
    """The model in fp32, then as it becomes ZeRO's; less what is there for good.

    Masters are cloned in the weights' width, then made where the optimizer is.
    """
    if layout.zero_stage in (0, 3):
        return []
    flat = found.width * found.size
    device, host = resident(found, layout)
    is_elsewhere = layout.offload != "none" and not found.is_cpu
    master = 0 if is_elsewhere else 4
    most = max(4.0 * found.size, 2.0 * flat, flat + (found.width + master) * found.share)
    there = sum(t.size for t in (device if is_elsewhere else [*device, *host]))
    return [_flat("weights", 1, max(0.0, most - there), "start")]


def _accumulated(found: Held, layout: Layout) -> Tensors:
    """Gradients of the micro-batches before."""
    if layout.accumulation_steps == 1 or layout.zero_stage in (0, 3):
        return []
    if layout.zero_stage == 1:
        return _each(found, "gradients", found.width, kind="own")
    return [_flat("gradients", found.width, found.share, "accumulated")]


def _gathered(found: Held, layout: Layout) -> Tensors:
    if layout.zero_stage < 3:
        return []
    share = found.gathered / found.size
    return _each(found, "communication", found.width, share, "gathered")


def _bucket(found: Held, layout: Layout) -> Tensors:
    """Where stages 1 and 2 gather gradients, from a backward pass's first to its last."""
    if layout.zero_stage in (0, 3):
        return []
    return [_flat("communication", found.width, found.bucket, "bucket")]


def _own(found: Held, layout: Layout) -> Tensors:
    """Gradients as autograd made them, before the bucket has them.

    Stage 1 moves them after the last; the others each at once. Under stage 3 what is gathered and
    freed in between keeps the places of a bucket's from being used again.
    """
    if layout.zero_stage == 2 and not found.stays:
        block = float(found.width * found.largest)
        return [Tensor("gradients", 2 * block, block, "own")]
    share = min(1.0, found.bucket / found.size) if layout.zero_stage == 3 else 1.0
    return _each(found, "gradients", found.width, share, "own")


def _reduced(found: Held, layout: Layout) -> Tensors:
    """The end of the backward pass: gradients in the bucket, and the copy that is sent."""
    flat = _flat("communication", found.width, min(found.size, found.bucket), "flat")
    if layout.zero_stage == 0:
        return [flat]  # also of one rank
    own = _own(found, layout)
    if layout.zero_stage == 3:
        return [*own, _partition(found)]
    shared = [flat] if layout.n_ranks > 1 else []
    return [*own, *_bucket(found, layout), *shared, *_accumulated(found, layout)]


def _partition(found: Held) -> Tensor:
    """This rank's part of one bucket, which then goes into grad_partitions_flat_buffer."""
    numel = found.share * min(1.0, found.bucket / found.size)
    return _flat("gradients", found.width, numel, "partition")


def _reduced_early(found: Held, layout: Layout) -> Tensors:
    """What a full bucket takes under stage 3 while nearly all activations are still there."""
    if layout.zero_stage < 3 or found.size <= found.bucket:
        return []
    return [*_own(found, layout), _partition(found)]


def _scattered(found: Held, layout: Layout) -> Tensors:
    """Stages 1 and 2 right after that: this rank's part of the gradients beside the bucket."""
    if layout.zero_stage in (0, 3) or layout.offload != "none" or found.stays:
        return []
    part = _flat("gradients", found.width, found.share)
    return [*_own(found, layout), *_bucket(found, layout), part, *_accumulated(found, layout)]


def _update(found: Held, layout: Layout) -> Tensors:
    """The step itself: a group's gradients, flat and in fp32."""
    work: Tensors = []
    if found.largest_matrix:
        numel = max(found.largest_matrix, min(_MUON_BATCH, found.size))
        copies = _MUON_COPIES * found.width + _MUON_WIDE * 4
        work = [Tensor("optimizer", copies * numel, found.width * numel, "work")]
    if found.is_lion:  # which measures while it steps
        signs = min(_CHUNK, found.share)
        work = [_flat("optimizer", 4, signs, "signs"), *_measure(found, found.size)]
    if layout.zero_stage == 0 or layout.offload != "none":
        return work
    in_fp32 = _flat("gradients", 4, found.group, "fp32")
    if layout.zero_stage == 3:
        return [in_fp32, *work]
    part = _flat("gradients", found.width, found.share)
    gradients = _each(found, "gradients", found.width, kind="own") if found.stays else [part]
    if found.is_fused:
        return gradients
    flat = [] if found.width == 4 else [_flat("gradients", found.width, found.group, "flat")]
    return [*gradients, in_fp32, *flat, *work]


def _measure(found: Held, longest: int) -> Tensors:
    """How far a step went, asked for a log: two copies in fp32, one in double precision.

    longest: numbers of the largest tensor that is measured.
    """
    numel = min(_CHUNK, longest, found.share)
    copies = [_flat("optimizer", 4, numel, kind) for kind in ("update", "before")]
    return [*copies, _flat("optimizer", 8, numel, "double")]
