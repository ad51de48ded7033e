"""The report's pictures, as SVG that takes its colours from the page and needs no font but its."""

import html
import math
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from launch.report.axes import Axis, axis_of, log_axis, short
from launch.report.series import Curve, Floats, Points

WIDTH, HEIGHT = 420, 250  # as wide as a telephone: text keeps its size there
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 12, 38
COLOURS = 8  # .c0 … .c7 of the page's style; beyond that they come again, dashed
_MOST_DRAWN = 300  # buckets of one line
_ENVELOPE_FROM = 60  # points of a noisy quantity that are drawn thin, with their mean on top
_FONT = 11
_LABEL = 200.0  # as wide as the name of a class may be


class Line(NamedTuple):
    """A labelled quantity in a chart."""

    label: str
    curve: Curve
    noisy: bool = True
    colour: int | None = None  # the same in all charts of a page; None: by its place in this one


class Mark(NamedTuple):
    """What befell the run at a step."""

    step: int
    kind: str
    text: str


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    log: bool = False,
    marks: Sequence[Mark] = (),
) -> str:
    """One quantity over steps and over tokens, with its legend, as a figure."""
    drawn = [(line, line.curve.points(_MOST_DRAWN)) for line in lines if line.curve.count]
    if not drawn:
        return ""
    is_positive = any(float(points.high.max()) > 0 for _, points in drawn)
    is_log = (log and is_positive) or _is_extreme([points for _, points in drawn])
    by_step = _picture(title, drawn, unit, is_log, marks, by_tokens=False)
    pictures = f'<div class="by-step">{by_step}</div>'
    if all(not np.isnan(points.tokens).any() for _, points in drawn):
        by_tokens = _picture(title, drawn, unit, is_log, marks, by_tokens=True)
        pictures += f'<div class="by-tokens">{by_tokens}</div>'
    else:
        pictures += f'<div class="by-tokens">{by_step}</div>'
    legend = _legend(drawn, has_marks=bool(marks))
    scale = ' <span class="unit">logarithmic</span>' if is_log else ""
    shown = f' <span class="unit">{html.escape(unit)}</span>' if unit else ""
    caption = f"<figcaption><b>{html.escape(title)}</b>{shown}{scale}</figcaption>"
    return f"<figure>{caption}{pictures}{legend}</figure>"


def _legend(drawn: Sequence[tuple[Line, Points]], *, has_marks: bool) -> str:
    """What each colour is; nothing where one line says all that the title does."""
    items = []
    if len(drawn) > 1 or drawn[0][0].colour is not None:
        items = [
            f'<li><span class="key k{colour % COLOURS}{_dash(colour)}"></span>'
            f"{html.escape(line.label)}</li>"
            for place, (line, _) in enumerate(drawn)
            for colour in [place if line.colour is None else line.colour]
        ]
    if has_marks:
        items.append('<li><span class="key event"></span>event (see the table)</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _dash(place: int) -> str:
    return " dashed" if place >= COLOURS else ""


def _is_extreme(drawn: Sequence[Points]) -> bool:
    """Whether a linear axis would show nothing but the highest value."""
    means = np.concatenate([points.mean for points in drawn])
    high = max(float(points.high.max()) for points in drawn)
    low = min(float(points.low.min()) for points in drawn)
    return low > 0 and len(means) > 2 and high > 50 * float(np.median(means))


def _picture(
    title: str,
    drawn: Sequence[tuple[Line, Points]],
    unit: str,
    is_log: bool,
    marks: Sequence[Mark],
    *,
    by_tokens: bool,
) -> str:
    where = [points.tokens if by_tokens else points.steps for _, points in drawn]
    low, high = min(float(w.min()) for w in where), max(float(w.max()) for w in where)
    low = 0.0 if low < 0.2 * high else low
    x = Axis(low, high if high > low else low + 1, _LEFT, WIDTH - _RIGHT)
    lows = [float(points.low.min()) for _, points in drawn]
    highs = [float(points.high.max()) for _, points in drawn]
    y = (log_axis if is_log else axis_of)(lows, highs, HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(x, y, "tokens" if by_tokens else "step")]
    parts += _drawn_marks(marks, x, drawn[0][1], by_tokens=by_tokens)
    for place, ((line, points), at) in enumerate(zip(drawn, where, strict=True)):
        colour = place if line.colour is None else line.colour
        parts.append(_drawn_line(line, points, x.at(at), y, colour))
    told = "; ".join(_describe(line, unit) for line, _ in drawn)
    axis = "tokens" if by_tokens else "steps"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="{_FONT}" role="img">'
        f"<title>{html.escape(title)} over {axis}</title><desc>{html.escape(told)}</desc>"
        f"{''.join(parts)}</svg>"
    )


def _describe(line: Line, unit: str) -> str:
    """The line in words, for those who do not see it."""
    curve, ending = line.curve, f" {unit}" if unit else ""
    told = (
        f"{line.label}: {curve.count:,} values, first {curve.first:.4g}, last {curve.last:.4g}, "
        f"least {curve.low:.4g} at step {curve.low_step:,}, greatest {curve.high:.4g} at step "
        f"{curve.high_step:,}{ending}"
    )
    return f"{told}; {curve.gaps:,} values not finite" if curve.gaps else told


def _grid(x: Axis, y: Axis, name: str) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value, place in zip(ticks := y.ticks(6), y.at(np.array(ticks)), strict=True):
        parts.append(f'<path class="grid" d="M{_LEFT} {place:.1f}H{right}"/>')
        parts.append(
            f'<text x="{_LEFT - 5}" y="{place + 4:.1f}" text-anchor="end">{short(value)}</text>'
        )
    for value, place in zip(ticks := x.ticks(5), x.at(np.array(ticks)), strict=True):
        if name == "step" and value != int(value):
            continue
        parts.append(f'<path class="tick" d="M{place:.1f} {bottom}v4"/>')
        anchor = "end" if place > right - 12 else "middle"
        parts.append(
            f'<text x="{place:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{short(value)}</text>'
        )
    parts.append(f'<path class="tick" d="M{_LEFT} {bottom}H{right}"/>')
    parts.append(f'<text x="{right}" y="{HEIGHT - 5}" text-anchor="end">{name}</text>')
    return "".join(parts)


def _drawn_marks(marks: Sequence[Mark], x: Axis, points: Points, *, by_tokens: bool) -> list[str]:
    """A line through the chart for each event, those of one place and kind together."""
    found: dict[tuple[int, str], list[Mark]] = {}
    for mark in marks:
        at = float(np.interp(mark.step, points.steps, points.tokens)) if by_tokens else mark.step
        if x.low <= at <= x.high:
            place = round(float(x.at(np.array([at]))[0]))
            found.setdefault((place, mark.kind), []).append(mark)
    drawn = []
    for (place, kind), here in found.items():
        more = f" (and {len(here) - 1} more)" if len(here) > 1 else ""
        told = html.escape(f"step {here[0].step:,}: {kind}: {here[0].text}{more}")
        word = "".join(letter if letter.isalnum() else "-" for letter in kind)
        drawn.append(
            f'<path class="mark {word}" d="M{place} {_TOP}V{HEIGHT - _BOTTOM}">'
            f"<title>{told}</title></path>"
        )
    return drawn


def _drawn_line(line: Line, points: Points, at: Floats, y: Axis, place: int) -> str:
    colour = f"c{place % COLOURS}{_dash(place)}"
    mean = y.at(points.mean)
    if not points.is_exact:
        low = y.at(np.maximum(points.low, y.low))  # what a logarithmic axis has no place for
        high = y.at(np.maximum(points.high, y.low))
        there = np.concatenate([at, at[::-1]])
        outline = _path(there, np.concatenate([high, low[::-1]]), closed=True)
        return (
            f'<path class="band {colour}" d="{outline}"/>'
            f'<path class="line {colour}" d="{_path(at, mean)}"/>'
        )
    if line.noisy and len(mean) > _ENVELOPE_FROM:
        smooth = y.at(np.array(running_mean(points.mean)))
        return (
            f'<path class="thin {colour}" d="{_path(at, mean)}"/>'
            f'<path class="line {colour}" d="{_path(at, smooth)}"/>'
        )
    dots = ""
    if len(mean) < 15:
        dots = "".join(
            f'<circle class="dot {colour}" cx="{a:.1f}" cy="{m:.1f}" r="2.6">'
            f"<title>{html.escape(line.label)}, step {step:,.0f}: {value:.5g}</title></circle>"
            for a, m, step, value in zip(at, mean, points.steps, points.mean, strict=True)
            if not math.isnan(m)
        )
    return f'<path class="line {colour}" d="{_path(at, mean)}"/>{dots}'


def _path(x: Floats, y: Floats, *, closed: bool = False) -> str:
    words, is_begun = [], False
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isnan(a) or math.isnan(b):
            is_begun = closed and is_begun
            continue
        words.append(f"{'L' if is_begun else 'M'}{a:.1f} {b:.1f}")
        is_begun = True
    return "".join(words) + ("Z" if closed else "")


def running_mean(values: Sequence[float] | Floats, share: float = 0.04) -> list[float]:
    """Exponential mean over about `share` of the points, without a bias at the start."""
    keep = 1 - 1 / max(2.0, share * len(values))
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + float(value), keep * weight + 1
        smooth.append(total / weight)
    return smooth


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Rows are true classes, columns predicted ones, shaded by share of the row."""
    cell = 24 if len(labels) <= 12 else 16 if len(labels) <= 25 else 9
    font = min(_FONT, cell + 2) if cell > 9 else 8
    shown = [fitted(label, font, _LABEL) for label in labels]
    margin = 22 + max((text_width(label, font) for label in shown), default=0)
    size = margin + cell * len(labels) + 4
    parts = []
    for row, (label, line) in enumerate(zip(labels, counts, strict=True)):
        total, middle = max(1, sum(line)), margin + (row + 0.5) * cell
        name = html.escape(shown[row])
        parts.append(
            f'<text x="{margin - 5:.0f}" y="{middle + font / 3:.1f}" text-anchor="end"'
            f' font-size="{font}">{name}</text>'
            f'<text transform="translate({middle + font / 3:.1f} {margin - 5:.0f}) rotate(-90)"'
            f' font-size="{font}">{name}</text>'
        )
        for column, count in enumerate(line):
            if count:
                parts.append(_cell(label, labels[column], count, count / total, cell))
                x, y = margin + column * cell, margin + row * cell
                parts[-1] = f'<g transform="translate({x:.0f} {y:.0f})">{parts[-1]}</g>'
    middle = margin + cell * len(labels) / 2
    parts.append(f'<text x="{middle:.0f}" y="11" text-anchor="middle">predicted</text>')
    parts.append(f'<text transform="translate(11 {middle:.0f}) rotate(-90)">true</text>')
    parts.append(
        f'<rect class="frame" x="{margin:.0f}" y="{margin:.0f}" width="{cell * len(labels)}"'
        f' height="{cell * len(labels)}"/>'
    )
    return (
        f'<svg viewBox="0 0 {size:.0f} {size:.0f}" font-size="{_FONT}" role="img">'
        f"<title>Confusion matrix</title><desc>{len(labels)} classes; rows are true classes, "
        f"columns predicted ones</desc>{''.join(parts)}</svg>"
    )


def _cell(true: str, predicted: str, count: int, share: float, size: int) -> str:
    level = min(9, int(share * 10))
    told = html.escape(f"true {true}, predicted {predicted}: {count:,} ({share:.0%})")
    text = ""
    if size > 9:
        ink = ' class="on-dark"' if level >= 5 else ""
        text = (
            f'<text{ink} x="{size / 2}" y="{size / 2 + 3}" text-anchor="middle" font-size="'
            f'{min(10, 1.6 * size / max(1, len(str(count)))):.0f}">{count}</text>'
        )
    return (
        f'<rect class="s{level}" width="{size}" height="{size}"><title>{told}</title></rect>{text}'
    )


def text_width(text: str, size: float) -> float:
    """About how wide a text is: Chinese, Japanese and Korean characters are twice the others."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return size * (wide + 0.58 * (len(text) - wide))


def fitted(text: str, size: float, width: float) -> str:
    """As much of the beginning of a text as a width has room for."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text}…"
