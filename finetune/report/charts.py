"""The reports' pictures, as SVG that takes its colours from the page. Text is escaped here."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from finetune.report.style import COLOURS

WIDTH, HEIGHT = 380, 230  # as wide as a telephone: text keeps its size there
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 34
Point = tuple[float, float]


class Line(NamedTuple):
    """A line of a chart, perhaps with the range around it; a level one where it has no points."""

    label: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()  # x, low, high
    level: float | None = None
    colour: int | None = None  # none: by its place


class Axis(NamedTuple):
    """A range of numbers on a stretch of a picture."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int, *, whole: bool = False) -> list[float]:
        """A few round numbers inside the range; whole: of things that can't be split."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * (1 - 1e-9))
        step = math.ceil(step) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis on which all values have room."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(max(0.0, low - margin) if low >= 0 else low - margin, high + margin, start, end)


def line_chart(lines: Sequence[Line], x_title: str) -> str:
    """Lines over a quantity; an empty text where there is nothing to draw."""
    xs = [x for line in lines for x, _ in line.points]
    if not xs:
        return ""
    ys = [y for line in lines for _, y in line.points]
    ys += [y for line in lines for _, low, high in line.band for y in (low, high)]
    ys += [line.level for line in lines if line.level is not None]
    across = axis(xs, LEFT, WIDTH - RIGHT)
    up = axis(ys, HEIGHT - BOTTOM, TOP)
    drawn = [_drawn(line, place, across, up) for place, line in enumerate(lines)]
    return _svg(frame(across, up, x_title) + "".join(drawn))


def colour_of(line: Line, place: int) -> str:
    """The class that a line has, in the picture and its legend."""
    number = place if line.colour is None else line.colour
    return f"c{number % COLOURS}" + (" flat" if line.level is not None else "")


def legend(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Which line is which."""
    return [(colour_of(line, place), line.label) for place, line in enumerate(lines)]


def _drawn(line: Line, place: int, across: Axis, up: Axis) -> str:
    kind = colour_of(line, place)
    parts = []
    if line.band:
        there = [(across.at(x), up.at(high)) for x, _, high in line.band]
        back = [(across.at(x), up.at(low)) for x, low, _ in reversed(line.band)]
        parts.append(f'<path class="band {kind}" d="{path([*there, *back])}Z"/>')
    if line.level is not None:
        height = up.at(line.level)
        d = path([(across.start, height), (across.end, height)])
        parts.append(f'<path class="line {kind}" d="{d}"/>')
    points = [(across.at(x), up.at(y)) for x, y in line.points]
    if points:
        parts.append(f'<path class="line {kind}" d="{path(points)}"/>')
    if len(points) <= 30:
        parts += [f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
                  for x, y in points]  # fmt: skip
    title = f"<title>{html.escape(line.label)}</title>"
    return f"<g>{title}{''.join(parts)}</g>"


def frame(across: Axis, up: Axis, x_title: str) -> str:
    """The grid, the numbers beside it and what they count."""
    parts = []
    for value in up.ticks(5):
        y = up.at(value)
        parts.append(f'<path class="grid" d="M{across.start:.1f} {y:.1f}H{across.end:.1f}"/>')
        parts.append(text(across.start - 6, y + 4, short(value), anchor="end"))
    for value in across.ticks(5, whole=x_title == "step"):
        parts.append(text(across.at(value), up.start + 15, short(value), anchor="middle"))
    middle = (across.start + across.end) / 2
    parts.append(text(middle, up.start + 30, x_title, anchor="middle"))
    corner = f"M{across.start:.1f} {up.end:.1f}V{up.start:.1f}H{across.end:.1f}"
    return f'{"".join(parts)}<path class="frame" d="{corner}"/>'


def path(points: Sequence[Point]) -> str:
    """SVG's words for a line through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def text(x: float, y: float, content: str, *, anchor: str = "start", kind: str = "") -> str:
    """A word in a picture."""
    name = f' class="{kind}"' if kind else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text{name} {place}>{html.escape(content)}</text>"


def short(value: float) -> str:
    """A number for a narrow place: 12k, 0.25, 3e-5."""
    size = abs(value)
    if 0 < size < 1e-3:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if size >= 1e4 else f"{value:.3g}"


def _svg(content: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img">{content}</svg>'
