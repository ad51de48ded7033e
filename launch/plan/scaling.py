"""How a run scales from one GPU to thousands, and where it breaks. Imports no torch."""

from typing import Any, NamedTuple

from launch.plan.batch import MUCH_LARGER, advised_tokens
from launch.plan.explain import shares
from launch.plan.quantities import count_text, duration
from launch.plan.search import Ask, Candidate, flops, mfu, search

COUNTS = tuple(2**power for power in range(15))  # 1 to 16,384


class Point(NamedTuple):
    """The best layout on so many GPUs."""

    gpus: int
    global_batch_size: int
    best: Candidate | None  # None: nothing fits
    efficiency: float | None  # tokens/s per GPU ÷ the most of all points
    mfu: float | None  # attention in full
    breaks: tuple[str, ...]


def simulate(ask: Ask, threshold: float, tokens: int) -> list[Point]:
    """Plan the same run on 1, 2, 4, … 16,384 GPUs.

    The batch stays as asked while there is a sequence for every rank, and grows with the ranks
    after that. threshold: efficiency below which scaling counts as broken. tokens: of the run,
    which decide how large a batch is advised.
    """
    advised = advised_tokens(flops(ask).causal * tokens) / ask.seq_len
    found = []
    for gpus in COUNTS:
        batch = batch_for(ask.global_batch_size, gpus)
        at = ask._replace(gpus=gpus, global_batch_size=batch)
        fitting = search(at).fitting
        found.append((at, fitting[0] if fitting else None))
    most = max((one.tokens_per_second / at.gpus for at, one in found if one), default=0.0)
    return [
        _point(at, best, most, threshold, (ask.global_batch_size, advised)) for at, best in found
    ]


def batch_for(asked: int, gpus: int) -> int:
    """The asked batch, or the nearest above that so many ranks can share out evenly."""
    return -(-asked // gpus) * gpus


def _point(
    ask: Ask,
    best: Candidate | None,
    most: float,
    threshold: float,
    batches: tuple[int, float],
) -> Point:
    """batches: sequences a step as asked, and as advised."""
    breaks, (asked, advised) = [], batches
    if best is None:
        return Point(ask.gpus, ask.global_batch_size, None, None, None, ("does not fit",))
    efficiency = best.tokens_per_second / ask.gpus / most
    if efficiency < threshold:
        breaks.append(f"efficiency below {threshold:.0%}")
    batch = ask.global_batch_size
    if ask.gpus > asked:
        breaks.append(f"micro-batch below 1: the batch grows to {batch:,} of {asked:,} asked")
    elif batch > asked:
        breaks.append(f"batch rounded up from {asked:,}")
    if batch > max(asked, MUCH_LARGER * advised):
        breaks.append(f"batch {batch / advised:.1f} times as large as scaling laws advise")
    return Point(
        ask.gpus,
        ask.global_batch_size,
        best,
        efficiency,
        mfu(ask, best).full,
        tuple(breaks),
    )


def table(points: list[Point], seq_len: int, tokens: int) -> list[str]:
    """The points for a person."""
    lines = [
        f"{'GPUs':>6}  {'batch':>7}  {'step':>8}  {'tokens/s':>9}  {'per GPU':>8}  {'MFU':>6}  "
        f"{'efficiency':>10}  {'exposed':>7}  {'time':>11}  layout"
    ]
    for point in points:
        best = point.best
        if best is None or point.efficiency is None or point.mfu is None:
            lines.append(f"{point.gpus:>6,}  {point.global_batch_size:>7,}  does not fit")
            continue
        layout = best.layout
        exposed = shares(best)["exposed communication"] / best.time.total_s
        told = f"ZeRO-{layout.zero_stage}{' hpZ' if layout.shard_ranks else ''}"
        told += f", {layout.micro_batch_size} × {layout.accumulation_steps}, {layout.recompute}"
        told += f", offload {layout.offload}" if layout.offload != "none" else ""
        lines.append(
            f"{point.gpus:>6,}  {point.global_batch_size:>7,}  "
            f"{duration(best.time.total_s):>8}  {count_text(best.tokens_per_second):>9}  "
            f"{best.tokens_per_second / point.gpus:>8,.0f}  {point.mfu:>6.1%}  "
            f"{point.efficiency:>10.0%}  {exposed:>7.0%}  "
            f"{duration(tokens / best.tokens_per_second):>11}  {told}"
        )
        lines += [f"{'':>6}  ↳ {why}" for why in point.breaks]
    return [*lines, f"(batch in sequences of {seq_len:,} tokens, time for {count_text(tokens)})"]


def first_break(points: list[Point]) -> str:
    """Where scaling breaks, in a sentence."""
    fitting = [point for point in points if point.best is not None]
    if not fitting:
        return "fits on none of these numbers of GPUs"
    top = max(fitting, key=lambda point: point.efficiency or 0.0)
    broken = next((point for point in fitting if point.gpus > top.gpus and point.breaks), None)
    told = f"fits from {fitting[0].gpus:,} GPU{'s' * (fitting[0].gpus > 1)}"
    if broken is None:
        return f"{told} and does not break up to {fitting[-1].gpus:,}"
    return f"{told}; breaks at {broken.gpus:,}: {'; '.join(broken.breaks)}"


def as_records(points: list[Point]) -> list[dict[str, Any]]:
    """The points as JSON holds them."""
    return [
        {
            "gpus": point.gpus,
            "global_batch_size": point.global_batch_size,
            "fits": point.best is not None,
            "efficiency": point.efficiency,
            "mfu": point.mfu,
            "tokens_per_second": point.best.tokens_per_second if point.best else None,
            "step_s": point.best.time.total_s if point.best else None,
            "exposed_s": point.best.time.exposed_s if point.best else None,
            "layout": point.best.layout._asdict() if point.best else None,
            "breaks": list(point.breaks),
        }
        for point in points
    ]
