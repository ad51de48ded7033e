"""The steps of a sweep as a table and a plot."""

from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def step_rows(content: dict[str, Any]) -> Rows:
    """The steps that were timed, of all parts."""
    parts = content["parts"].values()
    return [row for part in parts for row in part["rows"] if "tokens_per_second" in row]


def name_of(row: dict[str, Any]) -> str:
    """A step's name: model, and kernels or engine where they are not the default."""
    name: str = row["model"]
    name += "" if row["kernels"] == "torch" else f", {row['kernels']}"
    return name if row["engine"].startswith("ZeRO") else f"{name}, without DeepSpeed"


def print_table(rows: Rows) -> None:
    """Print steps as Markdown."""
    columns = ["step", "batch", "tokens/s", "ms, median", "min", "turns", "MFU", "causal"]
    columns += ["memory, GB", "attention", "gemm", "optimizer", "elementwise", "head alone, ms"]
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        shares = row.get("shares") or {}
        cells = [name_of(row), f"{row['batch_size']} × {row['seq_len']}"]
        cells += [f"{row['tokens_per_second']:,.0f}", f"{row['step_ms']:.1f}"]
        cells += [f"{row['step_min_ms']:.1f}", str(row["turns"])]
        cells += [_or_dash(row[key], "{:.1%}") for key in ("mfu", "mfu_causal")]
        cells += [_or_dash(row["memory_gb"], "{:.1f}")]
        cells += [_or_dash(shares.get(kind), "{:.0%}") for kind in columns[9:13]]
        cells += [_or_dash(row.get("head_alone_ms"), "{:.1f}")]
        print("| " + " | ".join(cells) + " |")


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def plot(rows: Rows, path: Path) -> None:
    """Draw rate and utilisation of each step. Raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ingot"})
    drawn = rows[::-1]
    names = [f"{name_of(row)} ({row['batch_size']} × {row['seq_len']})" for row in drawn]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.4 * len(drawn) + 1.5), sharey=True)
    axes[0].barh(names, [row["tokens_per_second"] for row in drawn])
    axes[0].set_xscale("log")
    axes[0].set_title("tokens per second", fontsize=10)
    axes[1].barh(names, [100 * (row["mfu"] or 0) for row in drawn], label="full")
    causal = [100 * (row["mfu_causal"] or 0) for row in drawn]
    axes[1].barh(names, causal, height=0.4, label="causal pairs only")
    axes[1].set_title("model-FLOPs utilisation, %", fontsize=10)
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
