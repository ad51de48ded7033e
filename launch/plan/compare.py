"""The model of a step against published runs: errors, and whether the order is right. Torch-free.

Speeds of models of all sizes are ordered right by any model of a step, since a larger one is
slower. What says something is the order of their model FLOPs utilisation, and that is what is
reported first.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from launch.estimate.layout import Layout
from launch.estimate.network import default_network
from launch.estimate.step_time import step_time
from launch.plan.published import GPUS, NOT_COMPARED, SHAPES, SOFTWARE, Run, runs
from model.flops import flops_per_token

LEAST = 4  # runs of a group whose order says something


class Compared(NamedTuple):
    """A run and what the model says of it; tokens/s and MFU per GPU, attention in full."""

    run: Run
    predicted: float
    measured_mfu: float
    predicted_mfu: float

    @property
    def error(self) -> float:
        """Predicted ÷ measured − 1."""
        return self.predicted / self.run.tokens_per_second - 1


class Group(NamedTuple):
    """How well some runs were predicted."""

    name: str
    runs: int
    bias: float  # mean of the errors
    mean_error: float  # of their sizes
    worst_error: float
    spearman: float | None  # of MFU
    kendall: float | None
    spearman_speed: float | None  # of tokens/s


def compare(run: Run) -> Compared:
    """Predict one run."""
    device, model = GPUS[run.gpu], SHAPES[run.model]
    layout = Layout(
        run.gpus,
        run.micro_batch_size,
        run.accumulation_steps,
        run.seq_len,
        run.zero_stage,
        run.precision,
        run.recompute,
        sequence_parallel=run.sequence_parallel,
        shard_ranks=run.shard_ranks,
        sharding="hsdp",
    )
    found = step_time(
        model,
        layout,
        device,
        default_network(device),
        run.gpus_per_node,
        predicted_fraction=run.predicted_fraction,
        software=SOFTWARE[run.system],
    )
    speed = layout.tokens_per_step / run.gpus / found.total_s
    flops = flops_per_token(model, run.seq_len, predicted_fraction=run.predicted_fraction).full
    share = flops / device.peak[run.precision]
    return Compared(run, speed, share * run.tokens_per_second, share * speed)


def compare_all() -> list[Compared]:
    """Predict every published run."""
    return [compare(run) for run in runs()]


def groups(found: Sequence[Compared]) -> list[Group]:
    """All runs, those that set the constants and those that did not, and by GPU and code."""
    chosen: list[tuple[str, Callable[[Run], bool]]] = [
        ("all", lambda run: True),
        ("held out", lambda run: not run.is_calibrated),
        ("calibrated on", lambda run: run.is_calibrated),
        ("held out, not llm-foundry", lambda run: run.system != "llm-foundry"),
        *((f"on {gpu}", _on(gpu)) for gpu in GPUS),
        *((f"by {name}", _by(name)) for name in dict.fromkeys(one.run.system for one in found)),
    ]
    return [_group(name, [one for one in found if keep(one.run)]) for name, keep in chosen]


def _on(gpu: str) -> Callable[[Run], bool]:
    return lambda run: run.gpu == gpu


def _by(system: str) -> Callable[[Run], bool]:
    return lambda run: run.system == system


def _group(name: str, found: Sequence[Compared]) -> Group:
    errors = [one.error for one in found]
    measured, predicted = ([getattr(one, f"{of}_mfu") for one in found] for of in _SIDES)
    speeds = [one.run.tokens_per_second for one in found], [one.predicted for one in found]
    has_order = len(found) >= LEAST
    return Group(
        name,
        len(found),
        fmean(errors),
        fmean(map(abs, errors)),
        max(errors, key=abs),
        spearman(measured, predicted) if has_order else None,
        kendall(measured, predicted) if has_order else None,
        spearman(*speeds) if has_order else None,
    )


_SIDES = ("measured", "predicted")


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank (Spearman 1904); 0 where one side is all equal."""
    a, b = _ranks(first), _ranks(second)
    mean = fmean(a)
    across = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    return across / spread if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(place)
    return [fmean(places[value]) for value in values]


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Share of the pairs in the same order less those in the other, τ-b (Kendall 1945)."""
    balance, untied_first, untied_second = 0, 0, 0
    for i in range(len(first)):
        for j in range(i):
            a, b = _sign(first[i] - first[j]), _sign(second[i] - second[j])
            balance += a * b
            untied_first += a != 0
            untied_second += b != 0
    untied = math.sqrt(untied_first * untied_second)
    return balance / untied if untied else 0.0


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def as_records(found: Iterable[Compared]) -> list[dict[str, Any]]:
    """The rows as JSON holds them."""
    return [
        {
            **one.run._asdict(),
            "predicted_tokens_per_second": round(one.predicted, 1),
            "error": round(one.error, 4),
            "measured_mfu": round(one.measured_mfu, 4),
            "predicted_mfu": round(one.predicted_mfu, 4),
        }
        for one in found
    ]


def tables(found: Sequence[Compared]) -> list[str]:
    """Every row with its error, then the groups, then what is not compared and why."""
    head = "code, model, GPUs, tokens × micro-batch × accumulation, computed again"
    lines = [f"{head:<82}  {'measured':>9} {'model':>9} {'error':>7}    MFU (attention in full)"]
    for one in found:
        run = one.run
        what = (
            f"{run.system}, {run.model}, {run.gpus} × {run.gpu}, {run.seq_len:,} × "
            f"{run.micro_batch_size} × {run.accumulation_steps}, {run.recompute}"
        )
        mark = "c" if run.is_calibrated else "a" if run.assumed else " "
        lines.append(
            f"{what:<82}  {run.tokens_per_second:>9,.0f} {one.predicted:>9,.0f} "
            f"{one.error:>+7.1%} {mark}  {one.measured_mfu:>5.1%} → {one.predicted_mfu:.1%}"
        )
    lines += ["", "tokens/s per GPU. c: set the model's constants; a: something was assumed:"]
    lines += [
        f"  {run.system}, {run.model}, {run.gpus} × {run.gpu}: {run.assumed}"
        for run in (one.run for one in found)
        if run.assumed
    ]
    lines += ["", f"{'runs':<28} {'number':>6} {'bias':>7} {'|error|':>8} {'worst':>7}"]
    lines[-1] += "   order of MFU: Spearman, Kendall   of tokens/s: Spearman"
    for group in groups(found):
        lines.append(
            f"{group.name:<28} {group.runs:>6} {group.bias:>+7.1%} {group.mean_error:>8.1%} "
            f"{group.worst_error:>+7.1%}   {_number(group.spearman):>22}, "
            f"{_number(group.kendall):>7}   {_number(group.spearman_speed):>21}"
        )
    lines += ["", "not compared:"]
    lines += [f"  {what}: {why}" for what, why in NOT_COMPARED.items()]
    sources = dict.fromkeys(one.run.source for one in found)
    return [*lines, "", "sources:", *(f"  {source}" for source in sources)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
