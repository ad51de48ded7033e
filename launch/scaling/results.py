"""What the runs of a scaling benchmark amount to: medians, efficiency, tables, a comparison."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.scaling.runs import WARM_UP, Case, Mode
from runtime.errors import EXIT_BAD_INPUT, UserError

SCHEMA = 1


class Point(NamedTuple):
    """One model, stage and number of ranks on one of the two curves."""

    mode: Mode
    model: str
    stage: int
    ranks: int
    sequences: int
    step_s: float
    spread: float  # how far the turns' medians lie apart, as a share of `step_s`
    tokens_per_second: float
    efficiency: float | None  # of the fewest ranks' tokens per second and rank; None: not measured
    communication: float  # share of a step inside collectives, mean over the ranks
    memory_bytes: int  # of the rank that took the most


class Measured(NamedTuple):
    """A case with what was measured in all turns."""

    case: Case
    modes: list[Mode]
    turns: list[list[dict[str, Any]]]  # turn → rank → its measures


def points(measured: Iterable[Measured], seq_len: int) -> list[Point]:
    """Medians over the counted steps of all turns, and efficiencies against the fewest ranks."""
    found = [
        _point(item, mode, seq_len)
        for item in measured
        for mode in item.modes
    ]  # fmt: skip
    fewest: dict[tuple[str, str, int], Point] = {}
    for point in found:
        curve = (point.mode, point.model, point.stage)
        if curve not in fewest or point.ranks < fewest[curve].ranks:
            fewest[curve] = point
    return [
        point._replace(efficiency=_efficiency(point, fewest[point.mode, point.model, point.stage]))
        for point in sorted(found, key=lambda p: (p.mode != "weak", p.model, p.stage, p.ranks))
    ]


def _point(item: Measured, mode: Mode, seq_len: int) -> Point:
    case = item.case
    # Ranks wait for one another in every step: the first one's clock is that of all.
    turns = [turn[0]["seconds"][WARM_UP:] for turn in item.turns]
    medians = [statistics.median(steps) for steps in turns]
    shares = [
        inside / seconds
        for turn in item.turns
        for rank in turn
        for inside, seconds in zip(
            rank["communication_s"][WARM_UP:], rank["seconds"][WARM_UP:], strict=True
        )
    ]
    step_s = statistics.median(seconds for steps in turns for seconds in steps)
    return Point(
        mode,
        case.model,
        case.stage,
        case.ranks,
        case.sequences,
        step_s,
        (max(medians) - min(medians)) / step_s,
        case.sequences * seq_len / step_s,
        None,
        statistics.median(shares),
        max(rank["memory_bytes"] for turn in item.turns for rank in turn),
    )


def _efficiency(point: Point, base: Point) -> float:
    own, first = (p.tokens_per_second / p.ranks for p in (point, base))
    return own / first


def table(found: Sequence[Point]) -> str:
    """As Markdown."""
    lines = [
        "| scaling | model | ZeRO | ranks | sequences a step | step | turns apart | tokens/s "
        "| efficiency | communication | memory a rank |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for p in found:
        efficiency = "" if p.efficiency is None else f"{100 * p.efficiency:.0f} %"
        lines.append(
            f"| {p.mode} | {p.model} | {p.stage} | {p.ranks} | {p.sequences} "
            f"| {1000 * p.step_s:.1f} ms | {100 * p.spread:.0f} % | {p.tokens_per_second:,.0f} "
            f"| {efficiency} | {100 * p.communication:.0f} % | {p.memory_bytes / 1e6:,.0f} MB |"
        )
    return "\n".join(lines)


def write(path: Path, about: dict[str, Any], measured: Sequence[Measured], seq_len: int) -> None:
    """Everything measured, with what it was measured on, as JSON."""
    content = {
        "schema": SCHEMA,
        **about,
        "points": [point._asdict() for point in points(measured, seq_len)],
        "runs": [
            {**item.case._asdict(), "modes": item.modes, "turns": item.turns} for item in measured
        ],
    }
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(path)


def read(path: Path) -> tuple[dict[str, Any], list[Point]]:
    """A file of `write`. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
        return content, [Point(**point) for point in content["points"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no result of a scaling benchmark ({str(error)[:100]})", status=EXIT_BAD_INPUT
        ) from error


def compare(first: Path, second: Path) -> str:
    """Two results side by side: what differs between the machines, then point by point."""
    (here, ours), (there, theirs) = read(first), read(second)
    lines = [f"A: {first}", f"B: {second}"]
    for part in ("machine", "versions", "settings"):
        for name in sorted({**here.get(part, {}), **there.get(part, {})}):
            a, b = (side.get(part, {}).get(name) for side in (here, there))
            if a != b:
                lines.append(f"{part}.{name}: A {a}, B {b}")
    others = {(p.mode, p.model, p.stage, p.ranks, p.sequences): p for p in theirs}
    lines += [
        "",
        "| scaling | model | ZeRO | ranks | tokens/s A | B | B ÷ A | efficiency A | B "
        "| communication A | B |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for p in ours:
        q = others.get((p.mode, p.model, p.stage, p.ranks, p.sequences))
        if q is not None:
            lines.append(
                f"| {p.mode} | {p.model} | {p.stage} | {p.ranks} | {p.tokens_per_second:,.0f} "
                f"| {q.tokens_per_second:,.0f} | {q.tokens_per_second / p.tokens_per_second:.2f} "
                f"| {100 * (p.efficiency or 0):.0f} % | {100 * (q.efficiency or 0):.0f} % "
                f"| {100 * p.communication:.0f} % | {100 * q.communication:.0f} % |"
            )
    if lines[-1].startswith("|---"):
        lines[-1] = "(no point was measured in both)"
    return "\n".join(lines)
