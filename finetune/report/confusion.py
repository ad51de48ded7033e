"""A confusion matrix as a picture, and a reliability diagram."""

import html
from collections.abc import Sequence

from finetune.report.calibration import Bin
from finetune.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, frame, path, text
from finetune.report.style import SHADES

MOST_NUMBERED = 24  # classes whose cells have room for their counts
MOST_DRAWN = 200  # classes beyond which a picture shows nothing
_CELL = 30
_NAME_CHARACTERS = 15
_PICTURE = 640  # wide, where the cells have no numbers


def matrix_picture(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """Rows are the right classes, columns the predicted; a cell's shade is its share of the row.

    Empty for more classes than a picture can show.
    """
    count = len(names)
    if count > MOST_DRAWN:
        return ""
    if count > MOST_NUMBERED:
        return _unnumbered(names, matrix)
    parts = []
    room = 14 + 7.0 * max(len(_short(name)) for name in names)
    for i, row in enumerate(matrix):
        y = room + i * _CELL
        parts.append(text(room - 6, y + _CELL / 2 + 4, _short(names[i]), anchor="end"))
        for j, number in enumerate(row):
            x = room + j * _CELL
            parts.append(_cell(x, y, _CELL, number, sum(row), f"{names[i]} → {names[j]}"))
            if number:
                shade = "on" if _shade(number, sum(row)) >= SHADES / 2 else "ink"
                parts.append(
                    text(
                        x + _CELL / 2, y + _CELL / 2 + 4, _few(number), anchor="middle", kind=shade
                    )
                )
    for j, name in enumerate(names):
        x = room + j * _CELL + _CELL / 2 + 4
        turned = f'transform="rotate(-90 {x} {room - 6})"'
        parts.append(f'<text x="{x}" y="{room - 6}" {turned}>{html.escape(_short(name))}</text>')
    side = room + count * _CELL + 2
    return _natural(side, side, "".join(parts))


def _unnumbered(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    size = _PICTURE / len(names)
    parts = [
        _cell(j * size, i * size, size, number, sum(row), f"{names[i]} → {names[j]}")
        for i, row in enumerate(matrix)
        for j, number in enumerate(row)
        if number
    ]
    edge = f'<path class="frame" d="M0 0H{_PICTURE}V{_PICTURE}H0Z"/>'
    return f'<svg viewBox="0 0 {_PICTURE} {_PICTURE}" role="img">{"".join(parts)}{edge}</svg>'


def _cell(x: float, y: float, size: float, number: int, total: int, title: str) -> str:
    gap = 1 if size > 8 else 0
    place = f'x="{x:.1f}" y="{y:.1f}" width="{size - gap:.1f}" height="{size - gap:.1f}"'
    shade = _shade(number, total) if number else 0
    told = html.escape(f"{title}: {number} of {total}")
    return f'<rect class="s{shade}" {place}><title>{told}</title></rect>'


def _shade(number: int, total: int) -> int:
    return min(SHADES - 1, int(number / max(total, 1) * SHADES))


def _few(number: int) -> str:
    return str(number) if number < 1000 else f"{number / 1000:.0f}k"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else name[: _NAME_CHARACTERS - 1] + "…"


def _natural(width: float, height: float, content: str) -> str:
    """A picture that keeps its size, however narrow the page is."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg class="natural" {size} role="img">{content}</svg>'


def reliability_diagram(bins: Sequence[Bin]) -> str:
    """Accuracy over confidence; on the dashed line they are equal."""
    across = Axis(0.0, 1.0, LEFT, WIDTH - RIGHT)
    up = Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    bars = []
    for found in bins:
        if not found.count:
            continue
        left, right, top = across.at(found.low), across.at(found.high), up.at(found.accuracy)
        place = f'x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}"'
        told = (
            f"{found.low:.2f}–{found.high:.2f}: {found.count} predictions, confidence "
            f"{found.confidence:.3f}, accuracy {found.accuracy:.3f}"
        )
        height = max(up.start - top, 1.0)
        bars.append(
            f'<rect class="bar c0" {place} height="{height:.1f}"><title>{told}</title></rect>'
        )
    ideal = path([(across.start, up.start), (across.end, up.end)])
    content = f'{frame(across, up, "probability")}{"".join(bars)}<path class="ideal" d="{ideal}"/>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{content}</svg>'
