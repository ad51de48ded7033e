"""A plan for a person to read, and as JSON. Imports no torch."""

from collections.abc import Sequence
from typing import Any

from launch.plan import explain, ramp
from launch.plan.batch import MUCH_LARGER, advised_tokens
from launch.plan.quantities import count_text, duration, gigabytes
from launch.plan.search import Ask, Candidate, Found, flops, mfu
from model.flops import parameters


def plan_text(ask: Ask, found: Found, best: Sequence[Candidate], tokens: int) -> list[str]:
    """The ask, what was assumed, the best layouts with reasons, and why others do not fit."""
    subject = ask.subject
    size = parameters(subject.model, subject.head)
    step, steps = (
        ask.global_batch_size * ask.seq_len,
        ramp.batch(ask).sizes.steps(tokens // ask.seq_len),
    )
    up_to = "up to " if subject.ramp else ""
    lines = [
        f"{subject.name}: {count_text(size)} parameters, {count_text(tokens)} tokens "
        f"({tokens / size:.0f} per parameter) in {steps:,} steps of "
        f"{up_to}{ask.global_batch_size:,} × {ask.seq_len:,} = {count_text(step)} tokens",
        f"{ask.gpus:,} × {ask.device.name}, {ask.gpus_per_node} per node, {ask.precision}"
        f"{', compiled' if ask.compile else ''}",
        network_text(ask),
        batch_text(ask, tokens),
        *filter(None, [ramp.note(ask, tokens)]),
    ]
    for place, candidate in enumerate(best, 1):
        lines += ["", *_candidate(ask, candidate, place, best[0], tokens)]
    if found.refused:
        lines += ["", "what does not fit:"]
        lines += [f"  {reason}" for reason in explain.why_not(ask, found)]
    return lines


def batch_text(ask: Ask, tokens: int) -> str:
    """The batch beside what scaling laws advise for the run."""
    advised = advised_tokens(flops(ask).causal * tokens)
    step = ask.global_batch_size * ask.seq_len
    told = f"batch of {count_text(step)} tokens; scaling laws advise {count_text(advised)}"
    if step > MUCH_LARGER * advised:
        return f"{told}: one {step / advised:.1f} times as large learns less from each token"
    return told


def network_text(ask: Ask) -> str:
    """The network model, every number with its unit."""
    network = ask.network
    return (
        f"network: {network.link / 1e9:g} GB/s per GPU inside a node, {network.wire / 1e9:g} GB/s "
        f"between nodes, hops of {1e6 * network.link_latency_s:g} and "
        f"{1e6 * network.latency_s:g} µs, {network.overlap:.0%} of communication hidden; host "
        f"{network.host_link / 1e9:g} GB/s per GPU, its memory {network.host_bandwidth / 1e9:g} "
        f"GB/s per GPU and {gigabytes(ask.host_memory)} per node, NVMe {network.nvme / 1e9:g} GB/s "
        f"per GPU"
    )


def _candidate(
    ask: Ask, candidate: Candidate, place: int, best: Candidate, tokens: int
) -> list[str]:
    time, memory, share = candidate.time, candidate.memory, mfu(ask, candidate)
    seconds = tokens / candidate.tokens_per_second
    low, high = (seconds * one / time.total_s for one in (time.low_s, time.high_s))
    lines = [
        f"{place}. {explain.layout_text(candidate.layout)}",
        f"   {duration(time.total_s)} a step, {candidate.tokens_per_second:,.0f} tokens/s "
        f"({candidate.tokens_per_second / ask.gpus:,.0f} per GPU), MFU {share.full:.1%} (causal "
        f"attention halved: {share.causal:.1%})",
        f"   {duration(seconds)} ({duration(low)} to {duration(high)}), "
        f"{seconds / 3600 * ask.gpus:,.0f} GPU-hours",
        f"   {gigabytes(memory.total)} a GPU ({gigabytes(memory.low)} to {gigabytes(memory.high)}) "
        f"of {gigabytes(ask.device.memory_bytes)}: {explain.largest_parts(memory)}",
        f"   {explain.bound(candidate)}",
    ]
    if place > 1:
        lines.append(f"   {explain.why_slower(best, candidate)}")
    return lines


def plan_record(ask: Ask, found: Found, best: Sequence[Candidate], tokens: int) -> dict[str, Any]:
    """The plan as JSON holds it."""
    subject = ask.subject
    return {
        "model": subject.name,
        "parameters": parameters(subject.model, subject.head),
        "tokens": tokens,
        "steps": ramp.batch(ask).sizes.steps(tokens // ask.seq_len),
        "gpus": ask.gpus,
        "gpu": ask.device.name,
        "gpus_per_node": ask.gpus_per_node,
        "seq_len": ask.seq_len,
        "global_batch_size": ask.global_batch_size,
        "ramp": ramp.record(ask, tokens),
        "precision": ask.precision,
        "advised_tokens_per_step": advised_tokens(flops(ask).causal * tokens),
        "network": ask.network._asdict(),
        "host_memory_bytes": ask.host_memory,
        "best": [_record(ask, candidate, tokens) for candidate in best],
        "does_not_fit": list(explain.why_not(ask, found)),
    }


def _record(ask: Ask, candidate: Candidate, tokens: int) -> dict[str, Any]:
    time, share = candidate.time, mfu(ask, candidate)
    return {
        "layout": candidate.layout._asdict(),
        "step_s": time.total_s,
        "step_s_interval": [time.low_s, time.high_s],
        "shares_s": explain.shares(candidate),
        "tokens_per_second": candidate.tokens_per_second,
        "mfu_full": share.full,
        "mfu_causal": share.causal,
        "seconds": tokens / candidate.tokens_per_second,
        "memory": candidate.memory._asdict(),
        "bound": explain.bound(candidate),
    }
