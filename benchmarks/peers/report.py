"""A comparison of training steps as a table, as targets met or missed, and as a plot."""

import statistics
from pathlib import Path
from typing import Any

NANOGPT, COMPILED, ENGINE = 2.0, 1.05, 1.05

Table = list[dict[str, Any]]


def _speedup(row: dict[str, Any], than: dict[str, Any]) -> float:
    """How many times as fast, the median of the turns' own ratios."""
    pairs = zip(than["turns_s"], row["turns_s"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def targets(table: Table) -> list[dict[str, Any]]:
    """Each target with what was measured; those whose rows are missing are left out."""
    found: list[dict[str, Any]] = []

    def add(what: str, value: float, limit: float, *, is_floor: bool) -> None:
        met = value >= limit if is_floor else value <= limit
        sign = "≥" if is_floor else "≤"
        found.append({"target": f"{what} {sign} {limit:,.2f}", "measured": value, "met": met})

    done = [row for row in table if "turns_s" in row]
    for family in dict.fromkeys(row["family"] for row in done):
        here = {row["name"]: row for row in done if row["family"] == family}
        ours = here.get("ours")
        if ours is None:
            continue
        if "nanoGPT default" in here and here["nanoGPT default"]["precision"] == "fp32":
            speed = _speedup(ours, here["nanoGPT default"])
            add(f"{family}: × nanoGPT's default", speed, NANOGPT, is_floor=True)
        others = [row for row in here.values() if row["peer"] not in ("engine", "bare")]
        compiled = [row for row in others if row["compile"] and row["precision"] != "fp32"]
        if compiled:
            best = min(compiled, key=lambda row: row["median_ms"])
            what = f"{family}: × the best compiled peer ({best['name']})"
            add(what, _speedup(ours, best), COMPILED, is_floor=True)
        bare = [row for row in here.values() if row["peer"] == "bare"]
        if bare:
            best = min(bare, key=lambda row: row["median_ms"])
            what = f"{family}: engine ÷ the best bare loop ({best['name']}), time"
            add(what, 1 / _speedup(ours, best), ENGINE, is_floor=False)
        for kind in ("whole_mb", "step_mb") if others else ():
            lean = min(others, key=lambda row: row[kind])
            what = f"{family}: {kind.replace('_', ', ')} ({lean['name']})"
            add(what, ours[kind], lean[kind], is_floor=False)
    return found


def print_table(result: dict[str, Any]) -> None:
    """Print the rows and the targets as Markdown."""
    has_mfu = any(row.get("mfu") for row in result["rows"])
    columns = ["model", "row", "precision", "compiled", "ms, median", "min", "CPU"]
    columns += ["tokens/s", "× ours"]
    columns += ["memory, MB: whole", "step", "compile, s", "loss", *(["MFU"] if has_mfu else [])]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    first = {row["family"]: row for row in reversed(result["rows"]) if row["name"] == "ours"}
    for row in result["rows"]:
        if "failed" in row:
            reason = row["failed"].strip().splitlines()[-1] if row["failed"].strip() else ""
            print(f"| {row['family']} | {row['name']} | failed: {reason} |")
            continue
        ours = first.get(row["family"])
        cells = [row["family"], row["name"], row["told"], "yes" if row["compile"] else "no"]
        cells += [f"{row['median_ms']:.1f}", f"{row['min_ms']:.1f}", f"{row['cpu_ms']:.1f}"]
        cells += [f"{row['tokens_per_second']:,.0f}"]
        cells += [f"{_speedup(row, ours):.2f}" if ours and "turns_s" in ours else "–"]
        cells += [f"{row['whole_mb']:,.0f}", f"{row['step_mb']:,.0f}", f"{row['compile_s']:.1f}"]
        cells += [f"{row['loss']:.4f}" + ("" if row["loss_agrees"] else " (differs)")]
        cells += [f"{100 * row['mfu']:.1f} %" if row["mfu"] else "–"] if has_mfu else []
        print("| " + " | ".join(cells) + " |")
    for key in result["left_out"]:
        print(f"left out, as --peers was not given: {key}")
    for target in result["targets"]:
        met = "met" if target["met"] else "MISSED"
        print(f"{met}: {target['target']}: {target['measured']:,.2f}")


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw tokens per second and memory of every row."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "ingot"
    table = [row for row in result["rows"] if "turns_s" in row][::-1]
    names = [f"{row['family']}: {row['name']}" for row in table]
    colors = ["tab:blue" if row["peer"] in ("engine", "bare") else "tab:gray" for row in table]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.35 * len(table) + 1.5), sharey=True)
    for axis, key, title in zip(
        axes,
        ("tokens_per_second", "step_mb"),
        ("tokens per second (more is better)", "memory of a step, MB (less is better)"),
        strict=True,
    ):
        axis.barh(names, [row[key] for row in table], color=colors)
        axis.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
