"""How long an optimizer step takes, from shapes, data sheets and an α–β network. Imports no torch.

Compute: each matrix product at the device's largest rate, plus the part of its own traffic that
arithmetic does not hide (a roofline with partial overlap; Williams et al. 2009); attention at the
rates of its kernel; everything else as traffic through memory. Communication: rings (network.py) of
what each ZeRO stage moves (Rajbhandari et al. 2020, §7). Nothing is fitted to a single run.
"""

from statistics import NormalDist
from typing import NamedTuple

from launch.estimate.devices import Device
from launch.estimate.efficiency import EFFICIENCY, SHORT_TEXT, UNHIDDEN, Attention
from launch.estimate.layout import Layout
from launch.estimate.network import Network, all_reduce_time, replica_time, ring_time
from launch.estimate.software import COMPILED, EAGER, Software
from model.config import ModelConfig
from model.flops import attention_pairs, parameters, parts
from model.memory import BYTES, activation_bytes_per_token, recomputed_bytes_per_token

# Nine in ten published runs that no constant was set with take 0.92 to 1.16 times as long as
# predicted (python -m launch plan --published). Wider here: none of them is of this engine.
FASTEST, SLOWEST = 0.85, 1.25
STRAGGLING = 0.02  # standard deviation of nodes' times for a step
_BACKWARD = 2 / 3  # of forward and backward


class Parts(NamedTuple):
    """Seconds of a step's computing on one rank, by what computes."""

    gemm: float
    attention: float
    elementwise: float
    head: float
    waiting: float  # of the device for Python and launches


class StepTime(NamedTuple):
    """Seconds of one optimizer step."""

    compute_s: float
    communication_s: float  # all of it, hidden or not
    exposed_s: float  # what computing does not hide
    optimizer_s: float
    total_s: float
    low_s: float
    high_s: float
    stragglers_s: float  # waiting for the slowest node
    parts: Parts


class _Machine(NamedTuple):
    """Rates of one rank."""

    flops: float
    memory: float  # bytes/s
    peak: float
    attention: Attention


def step_time(
    model: ModelConfig,
    layout: Layout,
    device: Device,
    network: Network,
    gpus_per_node: int,
    *,
    head: str | None = None,
    predicted_fraction: float = 1.0,
    software: Software | None = None,
) -> StepTime:
    """Seconds of an optimizer step on every rank of a layout.

    head, predicted_fraction: as in `flops_per_token`. software: default ours, compiled or not as
    the layout says. Raises `ValueError` for a precision that the device does not have.
    """
    software = software or (COMPILED if layout.compile else EAGER)
    machine = _machine(device, layout, gpus_per_node, software)
    found = _parts(model, layout, machine, software, head, predicted_fraction)
    if device.generation == "cpu":
        found = found._replace(waiting=0.0)
    size = parameters(model, head)
    once = sum(found)
    accumulation = layout.accumulation_steps
    # Each further micro-batch adds its gradients to those that are there: two read, one written.
    adding = (accumulation - 1) * 3 * BYTES[layout.precision] * size / machine.memory
    compute = accumulation * once + adding
    micro, last = _communication(size, model, layout, network, gpus_per_node, software)
    hiding = once * (1.0 if layout.zero_stage == 3 else _BACKWARD)
    exposed = accumulation * (micro - min(network.overlap * micro, hiding)) + last
    optimizer = _optimizer(size, layout, machine, network, software)
    nodes = -(-layout.n_ranks // gpus_per_node)
    stragglers = STRAGGLING * _slowest(nodes) * compute
    total = compute + exposed + optimizer + stragglers
    return StepTime(
        compute,
        accumulation * micro + last,
        exposed,
        optimizer,
        total,
        FASTEST * total,
        SLOWEST * total,
        stragglers,
        found._replace(**{name: accumulation * value for name, value in found._asdict().items()}),
    )


def _slowest(nodes: int) -> float:
    """How many standard deviations the slowest of so many is above the mean (Blom 1958)."""
    return NormalDist().inv_cdf((nodes - 0.375) / (nodes + 0.25)) if nodes > 1 else 0.0


def _machine(device: Device, layout: Layout, gpus_per_node: int, software: Software) -> _Machine:
    if layout.precision not in device.peak:
        known = ", ".join(sorted(device.peak))
        raise ValueError(f"{device.name} has no {layout.precision}; it computes in {known}")
    efficiency, peak = EFFICIENCY[device.generation], device.peak[layout.precision]
    # The ranks of one machine without GPUs share its cores and its memory.
    sharers = min(layout.n_ranks, gpus_per_node) if device.generation == "cpu" else 1
    return _Machine(
        efficiency.gemm * peak / sharers,
        efficiency.memory * device.bandwidth / sharers,
        peak / sharers,
        efficiency.attention[software.attention],
    )


def _parts(
    model: ModelConfig,
    layout: Layout,
    machine: _Machine,
    software: Software,
    head: str | None,
    predicted_fraction: float,
) -> Parts:
    """Seconds of one micro-batch."""
    tokens, width = layout.micro_tokens, BYTES[layout.precision]
    again = layout.recompute
    gemm = head_time = 0.0
    for part in parts(model, head):
        if part.name in ("attention.qkv", "attention.output", "mlp.gate_up", "mlp.up", "mlp.down"):
            is_again = again == "block" or part.name.startswith(again + ".")
            # Recomputing stops where nothing more is needed: a branch's last product never is.
            is_last = part.name == ("attention.output" if again == "attention" else "mlp.down")
            is_again = is_again and not is_last
            forward = part.copies * _product(tokens, part.shape, width, machine)
            gemm += (4 if is_again else 3) * forward
        elif part.name in ("transform", "unembedding"):
            rows = predicted_fraction * tokens
            head_time += 3 * _product(rows, part.shape, width, machine)
    if model.tie_embeddings and _has_scores(model, head):
        shape = (model.padded_vocab_size, model.d_model)
        head_time += 3 * _product(predicted_fraction * tokens, shape, width, machine)
    if _has_scores(model, head):
        scores = predicted_fraction * tokens * model.padded_vocab_size
        head_time += software.logit_bytes * scores / machine.memory
    kept = activation_bytes_per_token(
        model, dtype=layout.precision, head=head, predicted_fraction=predicted_fraction
    )
    moved = software.passes * kept
    if again != "none":  # written and read once more, in each layer
        layer = recomputed_bytes_per_token(model, layout.precision, again)
        moved += software.passes / 2 * layer * model.n_layers
    elementwise = moved * tokens / machine.memory
    attention = _attention(model, layout, machine)
    busy = gemm + attention + elementwise + head_time
    host = software.host_s * model.n_layers * (2 if layout.zero_stage == 3 else 1)
    return Parts(gemm, attention, elementwise, head_time, max(0.0, host - busy))


def _has_scores(model: ModelConfig, head: str | None) -> bool:
    return (head or model.lm_head) in ("causal_lm", "masked_lm", "pretraining")


def _product(rows: float, shape: tuple[int, ...], width: int, machine: _Machine) -> float:
    """Seconds of (rows, in) × (in, out); the two of the backward pass take as long each."""
    out, into = shape
    traffic = width * (rows * into + into * out + rows * out)
    return 2 * rows * out * into / machine.flops + UNHIDDEN * traffic / machine.memory


def _attention(model: ModelConfig, layout: Layout, machine: _Machine) -> float:
    """Seconds of the scores and their mixing; the backward pass has five products for two."""
    wide = min(1.0, max(0.0, (model.head_dim - 64) / 64))
    share = machine.attention
    forward = share.forward_64 + wide * (share.forward_128 - share.forward_64)
    backward = share.backward_64 + wide * (share.backward_128 - share.backward_64)
    seconds = 0.0
    for layer in range(model.n_layers):
        reach = min(layout.seq_len, model.window_of(layer) or layout.seq_len)
        rate = machine.peak * reach / (reach + SHORT_TEXT)
        pairs = attention_pairs(model, layer, layout.seq_len, in_full=False)
        flops = 4.0 * model.n_heads * model.head_dim * pairs * layout.micro_batch_size
        forwards = 2 if layout.recompute in ("block", "attention") else 1
        seconds += flops * (forwards / forward + 2.5 / backward) / rate
    return seconds / layout.sequence_parallel


def _communication(
    size: int,
    model: ModelConfig,
    layout: Layout,
    network: Network,
    gpus_per_node: int,
    software: Software,
) -> tuple[float, float]:
    """Seconds that may hide behind each micro-batch, and seconds after the last that can't."""
    ranks = layout.n_ranks
    if ranks == 1:
        return 0.0, 0.0
    whole = float(size * BYTES[layout.precision])
    stage = layout.zero_stage
    if stage == 3:
        return _stage_3(whole, size, model, layout, network, gpus_per_node, software)
    gathered = ring_time(whole, ranks, network, gpus_per_node) if stage else 0.0
    reduce = ring_time if software.is_reduce_scatter and stage else all_reduce_time
    calls = max(1, round(size / 5e8))
    reduced = reduce(whole, ranks, network, gpus_per_node, calls=calls)
    # Stage 2 keeps no whole gradients, so that each micro-batch reduces its own.
    if stage == 2:
        return reduced, gathered
    if software.hides_gradients:
        return reduced / layout.accumulation_steps, gathered
    return 0.0, gathered + reduced


def _stage_3(
    whole: float,
    size: int,
    model: ModelConfig,
    layout: Layout,
    network: Network,
    gpus_per_node: int,
    software: Software,
) -> tuple[float, float]:
    """ZeRO-3: weights gathered for the forward and for the backward pass, gradients scattered."""
    ranks, group = layout.n_ranks, layout.group
    pieces = software.gather_numbers
    calls = max(1, round(size / pieces)) if pieces else model.n_layers
    across = ring_time(whole, ranks, network, gpus_per_node, calls=calls)
    if group == ranks:
        return 3 * across, 0.0
    inside = ring_time(whole, group, network, gpus_per_node, calls=calls)
    if layout.sharding == "hpz":
        # Only the backward pass finds a second copy of the weights in its group (Wang et al. 2023,
        # "ZeRO++", §3.2).
        return 2 * across + inside, 0.0
    # hsdp keeps all states in the group and joins the groups' gradients once a step (Zhang et al.
    # 2022, §3.3).
    joined = replica_time(
        whole / group, ranks // group, network, gpus_per_node, is_local=ranks <= gpus_per_node
    )
    return 3 * inside, joined


def _optimizer(
    size: int, layout: Layout, machine: _Machine, network: Network, software: Software
) -> float:
    """Seconds of the update of this rank's share, where its states are."""
    share = size / layout.state_ranks
    if layout.offload == "none":
        return software.optimizer_bytes * share / machine.memory
    # Gradients go down in fp32 (from stage 2 on after each micro-batch), weights come back; in
    # between the host's memory bounds AdamW.
    times = layout.accumulation_steps if layout.zero_stage >= 2 else 1
    moved = (4 * times + BYTES[layout.precision]) * share / network.host_link
    update = software.optimizer_bytes * share / network.host_bandwidth
    stored = 2 * 12 * share / network.nvme if layout.offload_to == "nvme" else 0.0
    return moved + update + stored
