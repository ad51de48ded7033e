"""Measured scaling as one picture: throughput, efficiency and communication over ranks."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from launch.scaling.results import Point

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")


_Value = Callable[[Point], float]


def efficiency_chart(points: Sequence[Point]) -> str:
    """One row for each model, as SVG text; weak scaling in full lines, strong in dashed ones."""
    models = list(dict.fromkeys(point.model for point in points))
    style: Any = {"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "ingot"}
    with plt.rc_context(style):
        figure, grid = plt.subplots(
            len(models), 3, figsize=(11, 0.9 + 2.7 * len(models)), layout="constrained",
            squeeze=False,
        )  # fmt: skip
        for model, row in zip(models, grid, strict=True):
            own = [point for point in points if point.model == model]
            _draw(row[0], own, lambda p: p.tokens_per_second, "tokens/s")
            row[0].set_ylabel(model.replace("+", "\n+"), fontsize=9)
            _draw(row[1], own, lambda p: 100 * (p.efficiency or 0), "efficiency, %")
            _draw(row[2], own, lambda p: 100 * p.communication, "communication, % of a step")
            row[1].axhline(100, color="#9ca3af", linewidth=0.8, zorder=0)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _draw(axes: Axes, points: Sequence[Point], value: _Value, title: str) -> None:
    stages = sorted({point.stage for point in points})
    ranks = sorted({point.ranks for point in points})
    for stage, colour in zip(stages, _COLOURS, strict=False):
        for mode, line in (("weak", "-"), ("strong", "--")):
            own = [p for p in points if p.stage == stage and p.mode == mode]
            x, y = [p.ranks for p in own], [value(p) for p in own]
            label = f"ZeRO-{stage} {mode}"
            axes.plot(x, y, line, color=colour, marker="o", markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(n) for n in ranks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ranks")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color="#e5e7eb")
    axes.spines[["top", "right"]].set_visible(False)
