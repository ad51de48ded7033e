"""The report's pictures, as SVG text to put into a page."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.fonttype": "none",  # text stays text: small, selectable, in the reader's own font
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
}

Series = tuple[str, Sequence[float], Sequence[float]]  # label, steps, values


def curves(
    title: str, series: Sequence[Series], *, unit: str, log: bool = False, noisy: bool = True
) -> str:
    """Values over steps; many noisy points are drawn thin with a running mean on top."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
        for (label, steps, values), colour in zip(series, COLOURS, strict=False):
            if noisy and len(values) > 60:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(steps, _running_mean(values), color=colour, linewidth=1.8, label=label)
            else:
                marker = "o" if len(values) < 15 else None
                axes.plot(
                    steps,
                    values,
                    color=colour,
                    linewidth=1.8,
                    marker=marker,
                    markersize=4,
                    label=label,
                )
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.set_title(title, loc="left", fontsize=12)
        if log:
            axes.set_yscale("log")
        else:
            axes.margins(y=0.08)
        if len(series) > 1:
            axes.legend(frameon=False)
        return _svg(figure)


def _running_mean(values: Sequence[float], share: float = 0.04) -> list[float]:
    """Exponential mean over about `share` of the points, without a bias at the start."""
    keep = 1 - 1 / max(2.0, share * len(values))
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smooth.append(total / weight)
    return smooth


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Rows are true classes, columns predicted ones, shaded by share of the row."""
    shares = [[n / max(1, sum(row)) for n in row] for row in counts]
    side = min(9.0, 2.2 + 0.42 * len(labels))
    with plt.rc_context({**_STYLE, "axes.grid": False, "font.size": 9}):
        figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if len(labels) <= 25:
            for i, row in enumerate(counts):
                for j, n in enumerate(row):
                    if n:
                        colour = "white" if shares[i][j] > 0.5 else "#1f2937"
                        axes.text(j, i, str(n), ha="center", va="center", color=colour, fontsize=8)
        return _svg(figure)


def _svg(figure: Any) -> str:
    out = io.StringIO()
    # Without a date the same run gives the same page, byte for byte.
    figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]
