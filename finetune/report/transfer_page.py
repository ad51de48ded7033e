"""A transfer report for people: HTML and Markdown from its summary."""

from collections.abc import Sequence
from typing import Any

from finetune.report import blocks
from finetune.report.charts import Line, legend, line_chart
from finetune.report.simple_ways import TFIDF
from finetune.report.transfer_plan import PRETRAINED
from finetune.report.transfer_summary import MOST_CLASSES, title_of
from finetune.tasks.base import LOWER_IS_BETTER


def page(report: dict[str, Any]) -> list[blocks.Block]:
    """The blocks of a report."""
    metric = report["metric"]
    name = report["name"]
    found: list[blocks.Block] = [
        blocks.Heading(f"Is transfer worth it? {name}", 1),
        blocks.Facts(_facts(report)),
        *([blocks.Items(report["warnings"], is_warning=True)] if report["warnings"] else []),
        blocks.Heading("What was found"),
        blocks.Items(report["findings"]),
        blocks.Heading("Scores"),
        _scores(report),
        _differences(report),
        blocks.Heading("Learning curves"),
        _curves(report["ways"], metric),
        _training(report["ways"], metric),
    ]
    found += _leaks(report)
    found += _classes(report["classes"])
    found += [blocks.Heading("How it was measured"), blocks.Items(_method(report))]
    found.append(blocks.Folded("Every run", [_runs(report)]))
    return found


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    counts = report["examples"]
    facts = [
        ("task", report["task"]),
        ("metric", f"{report['metric']} on {report['split']}"),
        ("seeds", ", ".join(map(str, report["seeds"]))),
        *((name, f"{count:,} examples") for name, count in counts.items()),
    ]
    if report["classes_count"]:
        facts.append(("classes", str(report["classes_count"])))
    return [*facts, ("model", report["model"])]


def _plus_minus(value: dict[str, Any] | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    mean = f"{value['mean']:,.{digits}f}"
    return mean if value["std"] is None else f"{mean} ± {value['std']:,.{digits}f}"


def _scores(report: dict[str, Any]) -> blocks.Block:
    ways = report["ways"]
    metrics = list(dict.fromkeys(name for way in ways for name in way["scores"]))
    rows = [
        [way["title"], *(_plus_minus(way["scores"].get(name)) for name in metrics),
         str(len(way["runs"]))]
        for way in ways
    ]  # fmt: skip
    split = report["split"]
    caption = f"{split} scores of the model that is best on dev: mean ± standard deviation of seeds"
    return blocks.Table(caption, ["", *metrics, "seeds"], rows)


def _differences(report: dict[str, Any]) -> blocks.Block:
    rows = []
    for row in report["differences"]:
        if not row["n"]:
            continue
        error, interval = row["standard_error"], row["interval"]
        rows.append(
            [
                f"pretrained − {title_of(row['minus'])}",
                f"{row['mean']:+.4f}",
                "–" if error is None else f"{error:.4f}",
                "–" if interval is None else f"{interval[0]:+.4f} … {interval[1]:+.4f}",
                f"{row['positive']} of {row['n']}",
            ]
        )
    header = ["", "mean", "standard error", "95 % interval", "greater in"]
    return blocks.Table(f"differences in {report['metric']}, paired by seed", header, rows)


def _curves(ways: Sequence[dict[str, Any]], metric: str) -> blocks.Block:
    lines = []
    for number, way in enumerate(ways):
        curve = _mean_curve(way["runs"])
        if curve:
            points = [(step, mean) for step, _, mean, _ in curve]
            band = [(step, low, high) for step, low, _, high in curve]
            lines.append(Line(way["title"], points, band, colour=number))
        elif way["name"] == TFIDF and "best_dev" in way:
            lines.append(Line(way["title"], [], level=way["best_dev"]["mean"], colour=number))
    title = f"{metric} on dev, mean over seeds, with the least and the greatest"
    return blocks.Figure(title, line_chart(lines, "step"), legend(lines))


def _mean_curve(runs: Sequence[dict[str, Any]]) -> list[tuple[int, float, float, float]]:
    """Step, least, mean and greatest, of the steps that every seed was evaluated at."""
    curves = [dict(run["curve"]) for run in runs if run.get("curve")]
    if not curves:
        return []
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    rows = [(step, [curve[step] for curve in curves]) for step in shared]
    return [(step, min(v), sum(v) / len(v), max(v)) for step, v in rows]


def _training(ways: Sequence[dict[str, Any]], metric: str) -> blocks.Block:
    rows = []
    for way in ways:
        steps = way.get("initial_step")
        first = ", ".join(map(str, steps)) if steps else "–"
        rows.append(
            [way["title"], _plus_minus(way.get("initial_dev")), first,
             _plus_minus(way.get("best_dev")), _plus_minus(way.get("best_step"), 0),
             _plus_minus(way.get("seconds"), 1)]
        )  # fmt: skip
    header = ["", f"initial dev {metric}", "at step", "best on dev", "steps to best", "seconds"]
    return blocks.Table("initial: at the first evaluation", header, rows)


def _leaks(report: dict[str, Any]) -> list[blocks.Block]:
    metric = report["metric"]
    rows = [
        [way["title"], _plus_minus(way["seen"].get(metric)), _plus_minus(way["unseen"].get(metric))]
        for way in report["ways"]
        if "seen" in way
    ]
    if not rows:
        return []
    caption = f"{metric} of {report['split']} examples that are in train too, and of the others"
    return [blocks.Heading("Seen and unseen"), blocks.Table(caption, ["", "seen", "unseen"], rows)]


def _classes(rows: Sequence[dict[str, Any]]) -> list[blocks.Block]:
    if not rows:
        return []
    losing = [row for row in rows if row[TFIDF] > row[PRETRAINED]]
    winning = [row for row in rows if row[TFIDF] < row[PRETRAINED]]
    header = ["class", "pretrained", "TF-IDF", "difference"]

    def table(caption: str, chosen: Sequence[dict[str, Any]]) -> list[blocks.Block]:
        shown = [
            [row["class"], f"{row[PRETRAINED]:.3f}", f"{row[TFIDF]:.3f}",
             f"{row[PRETRAINED] - row[TFIDF]:+.3f}"]
            for row in chosen[:MOST_CLASSES]
        ]  # fmt: skip
        return [blocks.Table(caption, header, shown)] if shown else []

    more = f", the {MOST_CLASSES} clearest"
    return [
        blocks.Heading("By class"),
        blocks.Paragraph(
            f"Mean F1 over seeds: TF-IDF is better in {len(losing)} of {len(rows)} classes, the "
            f"pretrained model in {len(winning)}."
        ),
        *table("better by TF-IDF" + (more if len(losing) > MOST_CLASSES else ""), losing),
        *table(
            "better by the pretrained model" + (more if len(winning) > MOST_CLASSES else ""),
            winning[::-1],
        ),
    ]


def _method(report: dict[str, Any]) -> list[str]:
    better = "lower" if report["metric"] in LOWER_IS_BETTER else "higher"
    lines = [
        f"All ways of a seed learn from the same examples and are scored on the same; {better} "
        f"{report['metric']} is better.",
        "A seed decides which examples are drawn, the fresh weights, the order of the data and "
        "dropout.",
        "Models are chosen by dev, and scored once on the other set.",
    ]
    for way in report["ways"]:
        if way["overrides"]:
            lines.append(f"{way['title']}: {' '.join(way['overrides'])}")
    if any(way["name"] == TFIDF for way in report["ways"]):
        lines.append(
            "TF-IDF: of words 1–2 and characters in words 2–5, or of characters 1–3 where a script "
            "has no spaces; logistic regression with C = 10. It has no dev set to choose by: where "
            "dev is a share of train, it learns from that share too."
        )
    else:
        lines.append(f"TF-IDF + logistic regression: not for task {report['task']}.")
    return lines


def _runs(report: dict[str, Any]) -> blocks.Table:
    metric = report["metric"]
    rows = [
        [way["title"], str(run["seed"]), f"{run['scores'][metric]:.4f}",
         f"{run['best_dev']:.4f}" if "best_dev" in run else "–", str(run.get("best_step", "–")),
         f"{run['seconds']:.1f}"]
        for way in report["ways"]
        for run in way["runs"]
    ]  # fmt: skip
    header = ["", "seed", f"{report['split']} {metric}", "best dev", "best step", "seconds"]
    return blocks.Table("", header, rows)
