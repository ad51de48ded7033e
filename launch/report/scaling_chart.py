"""The picture of a scaling simulation, as SVG text."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

_METADATA = ("Date", "Creator", "Format", "Type")  # addresses of vocabularies among them
_SPEED, _IDEAL, _EFFICIENCY, _BROKEN = "#2563eb", "#9ca3af", "#059669", "#dc2626"


def scaling_chart(
    title: str,
    gpus: Sequence[int],
    tokens_per_second: Sequence[float],
    efficiency: Sequence[float],
    *,
    broken: Sequence[bool],
    threshold: float,
) -> str:
    """Tokens/s over GPUs on logarithmic axes beside the ideal, and efficiency below.

    broken: points where scaling breaks, marked red. All sequences are of one length, at least 1.
    """
    style: Any = {"font.family": "sans-serif", "font.size": 11, "svg.fonttype": "none"}
    style["svg.hashsalt"] = "scaling"
    with plt.rc_context(style):
        figure, (upper, lower) = plt.subplots(
            2, 1, figsize=(7.2, 5.6), layout="constrained", sharex=True, height_ratios=(2, 1)
        )
        best = max(speed / n for speed, n in zip(tokens_per_second, gpus, strict=True))
        upper.plot(gpus, [best * n for n in gpus], color=_IDEAL, linestyle="--", label="ideal")
        upper.plot(gpus, tokens_per_second, color=_SPEED, marker="o", label="predicted")
        upper.set_xscale("log", base=2)
        upper.set_yscale("log")
        upper.set_ylabel("tokens/s")
        upper.set_title(title, loc="left", fontsize=12)
        lower.plot(gpus, [100 * one for one in efficiency], color=_EFFICIENCY, marker="o")
        lower.axhline(100 * threshold, color=_IDEAL, linestyle="--")
        lower.set_ylim(0, 105)
        lower.set_ylabel("efficiency, %")
        lower.set_xlabel("GPUs")
        lower.set_xticks(list(gpus), [f"{n:,}" for n in gpus], rotation=45, ha="right")
        marked = [i for i, is_broken in enumerate(broken) if is_broken]
        upper.plot(
            [gpus[i] for i in marked],
            [tokens_per_second[i] for i in marked],
            color=_BROKEN,
            marker="o",
            linestyle="",
            label="breaks",
        )
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(visible=True, color="#e5e7eb")
        upper.legend(frameon=False)
        out = io.StringIO()
        # Without a date and random names the same plan gives the same picture, byte for byte.
        figure.savefig(out, format="svg", metadata=dict.fromkeys(_METADATA))
        plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]
