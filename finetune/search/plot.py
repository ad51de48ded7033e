"""A search as one picture: the scores in their order, and against each key. SVG, torch-free."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from finetune.search.study import Row
from finetune.tasks.base import LOWER_IS_BETTER

_WIDTH, _HEIGHT = 300, 220  # of a panel
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 30, 14, 38
_COLOURS = {"complete": "#0969da", "pruned": "#8c959f"}
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#1f2328}.t{font-weight:600}"
    ".a{stroke:#8c959f}.b{stroke:#1a7f37;fill:none;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}}"
)


def picture(rows: Sequence[Row], metric: str) -> str:
    """The panels side by side, three a line; trials that were pruned are grey."""
    shown = [row for row in rows if row.score is not None and row.state in _COLOURS]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    keys = list(dict.fromkeys(key for row in shown for key in row.values))
    scores = [sign * row.score for row in shown if row.score is not None]
    panels = [_panel("trial", [row.number for row in shown], shown, scores, sign=sign)]
    panels += [_panel(key, [row.values.get(key) for row in shown], shown, scores) for key in keys]
    columns = min(3, len(panels))
    placed = "".join(
        f'<g transform="translate({i % columns * _WIDTH},{i // columns * _HEIGHT + 24})">{p}</g>'
        for i, p in enumerate(panels)
    )
    width, height = columns * _WIDTH, -(-len(panels) // columns) * _HEIGHT + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img"><style>{_STYLE}</style>'
        f'<text class="t" x="8" y="16">dev {escape(metric)} of {len(shown)} trials</text>'
        f"{placed}</svg>\n"
    )


def _panel(
    name: str, values: list[Any], rows: Sequence[Row], scores: list[float], *, sign: int = 0
) -> str:
    """One scatter plot; with a `sign` also the best so far as a line."""
    x_of, ticks = _axis(values, _LEFT, _WIDTH - _RIGHT)
    y_of, y_ticks = _axis(scores, _HEIGHT - _BOTTOM, _TOP)
    bottom = _HEIGHT - _BOTTOM
    parts = [
        f'<text class="t" x="{_LEFT}" y="{_TOP - 10}">{escape(name)}</text>',
        f'<path class="a" fill="none" d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}"/>',
        *(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>'
            for x, text in ticks
        ),
        *(
            f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
            for y, text in y_ticks
        ),
    ]
    if sign and scores:
        best, points = -math.inf, []
        for value, row, score in zip(values, rows, scores, strict=True):
            if row.state == "complete":
                best = max(best, sign * score)
            if best > -math.inf:
                points.append(f"{x_of(value):.1f},{y_of(sign * best):.1f}")
        parts.append(f'<polyline class="b" points="{" ".join(points)}"/>')
    for value, row, score in zip(values, rows, scores, strict=True):
        title = f"trial {row.number}: {name} {_text(value)}, {_text(score)}"
        parts.append(
            f'<circle cx="{x_of(value):.1f}" cy="{y_of(score):.1f}" r="3.5" '
            f'fill="{_COLOURS[row.state]}" fill-opacity=".75"><title>{escape(title)}</title>'
            "</circle>"
        )
    return "".join(parts)


def _axis(
    values: list[Any], start: float, end: float
) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Where a value lies, and the ticks: numbers to scale (or their logarithms), words evenly."""
    if not values:
        return (lambda _: start), []
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        names = sorted({_text(v) for v in values})
        gap = (end - start) / len(names)
        at = {name: start + gap * (i + 0.5) for i, name in enumerate(names)}
        return (lambda v: at[_text(v)]), [(at[name], name[:12]) for name in names]
    low, high = min(values), max(values)
    is_log = low > 0 and high / low >= 20
    scale: Callable[[float], float] = math.log if is_log else float
    span = scale(high) - scale(low) or 1.0
    pad = 0.06 * (end - start)

    def place(value: Any) -> float:
        share = (scale(value) - scale(low)) / span if high > low else 0.5
        return start + pad + share * (end - start - 2 * pad)

    middle = math.sqrt(low * high) if is_log else (low + high) / 2
    shown = [low, middle, high] if high > low else [low]
    return place, [(place(v), f"{v:.3g}") for v in shown]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
