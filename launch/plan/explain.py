"""Why a layout is the best, why the next is slower, and why others do not fit. Imports no torch."""

from collections.abc import Iterator

from launch.estimate.layout import Layout
from launch.estimate.memory import RunMemory
from launch.plan.quantities import duration, gigabytes
from launch.plan.search import Ask, Candidate, Found, Refused, room, sharers

_AGAIN = {
    "none": "keeps all activations",
    "block": "computes whole blocks again",
    "attention": "computes attention again",
    "mlp": "computes MLPs again",
}
_WORTH_SAYING = 0.02  # of a step
_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "communication")


def layout_text(layout: Layout) -> str:
    """A layout in a line."""
    told = f"ZeRO-{layout.zero_stage}"
    if layout.shard_ranks is not None:
        told += f", hpZ groups of {layout.shard_ranks}"
    told += f", micro-batch {layout.micro_batch_size} × {layout.accumulation_steps}"
    told += f", {_AGAIN[layout.recompute]}"
    if layout.offload != "none":
        what = "optimizer" if layout.offload == "optimizer" else "optimizer and weights"
        where = "NVMe" if layout.offload_to == "nvme" else "host memory"
        told += f", {what} in {where}"
    return told


def shares(candidate: Candidate) -> dict[str, float]:
    """Seconds of a step by what takes them; they add up to the whole."""
    time, parts = candidate.time, candidate.time.parts
    adding = time.compute_s - sum(parts)
    return {
        "matrix products": parts.gemm,
        "attention": parts.attention,
        "scores over the vocabulary": parts.head,
        "memory traffic between them": parts.elementwise + adding,
        "waiting for Python": parts.waiting,
        "exposed communication": time.exposed_s,
        "optimizer": time.optimizer_s,
        "waiting for the slowest node": time.stragglers_s,
    }


def bound(candidate: Candidate) -> str:
    """What bounds a layout, with shares of the step."""
    found = shares(candidate)
    total = candidate.time.total_s
    groups = {
        "compute": found["matrix products"]
        + found["attention"]
        + found["scores over the vocabulary"],
        "memory bandwidth": found["memory traffic between them"],
        "Python and launches": found["waiting for Python"],
        "exposed communication": found["exposed communication"],
        "the optimizer": found["optimizer"],
    }
    name = max(groups, key=lambda one: groups[one])
    told = [f"{what} {part / total:.0%}" for what, part in _largest(found, total)]
    return f"bound by {name}: {', '.join(told)}"


def _largest(found: dict[str, float], total: float) -> list[tuple[str, float]]:
    worth = [(what, part) for what, part in found.items() if part >= _WORTH_SAYING * total]
    return sorted(worth, key=lambda one: -one[1])


def why_slower(best: Candidate, other: Candidate) -> str:
    """What a layout loses against the best, and what it has for that."""
    first, second = shares(best), shares(other)
    more = {what: second[what] - first[what] for what in first}
    slower = other.time.total_s / best.time.total_s - 1
    losses = sorted(((part, what) for what, part in more.items() if part > 0), reverse=True)
    told = [f"+{duration(part)} {what}" for part, what in losses[:2]]
    saved = best.memory.total - other.memory.total
    gain = f"; takes {gigabytes(saved)} less" if saved > 0.02 * best.memory.total else ""
    if abs(slower) < 5e-4:
        return f"as fast{gain}"
    if slower < 0:
        doubt = "the host" if other.layout.offload != "none" else "the network"
        return f"{-slower:.1%} faster if {doubt} keeps up, which is less certain{gain}"
    return f"{slower:.1%} slower: {', '.join(told)} a step{gain}"


def why_not(ask: Ask, found: Found) -> Iterator[str]:
    """For each stage and offload what does not fit, by how much, and what is in it."""
    families = {_family(one.layout): one for one in sorted(found.refused, key=_simplest_last)}
    for family in reversed(families):
        stage, offload, target = family
        same = [one for one in found.refused if _family(one.layout) == family]
        # The combination that needs least speaks for those that keep more.
        least = min(same, key=lambda one: one.memory.high)
        told = f"ZeRO-{stage}" + (f", {offload} in {target}" if offload != "none" else "")
        if any(_family(one.layout) == family for one in found.fitting):
            kept = dict.fromkeys(_AGAIN[one.layout.recompute] for one in same)
            told += f", if it {' or '.join(kept)}"
        yield f"{told}: {_short(ask, least)}"


def _family(layout: Layout) -> tuple[int, str, str]:
    return layout.zero_stage, layout.offload, layout.offload_to


def _simplest_last(refused: Refused) -> tuple[bool, int]:
    return refused.layout.offload == "none", -refused.layout.zero_stage


def _short(ask: Ask, refused: Refused) -> str:
    memory = refused.memory
    if refused.is_host:
        return (
            f"{sharers(ask)} ranks need {gigabytes(memory.host * sharers(ask))} of a node's "
            f"{gigabytes(ask.host_memory)} host memory"
        )
    return (
        f"a micro-batch of 1 needs {gigabytes(memory.high)} of {gigabytes(room(ask))} "
        f"({largest_parts(memory)})"
    )


def largest_parts(memory: RunMemory) -> str:
    """The three largest parts of a memory."""
    parts = sorted(((getattr(memory, name), name) for name in _PARTS), reverse=True)
    return ", ".join(f"{name} {gigabytes(size)}" for size, name in parts[:3])
