"""The report of a run for people: HTML and Markdown from its files."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from finetune.report import blocks
from finetune.report.charts import Line, legend, line_chart
from finetune.report.confusion import MOST_DRAWN, matrix_picture, reliability_diagram
from finetune.report.run_files import RunFiles, confused_pairs

_SHOWN_TEXT = 300  # characters of an example
_MOST_POINTS = 300  # of a curve
_MOST_ROWS = 30  # of a table that stands open
_NAMES = ("task", "split", "examples", "data", "truncated", "seen_in_train", "model", "best")
_TOLD = (*_NAMES, "classes", "labels", "confusion_matrix", "calibration", "seen", "unseen",
         "most_confused", "macro avg", "weighted avg", "micro avg")  # fmt: skip
_AVERAGES = ("micro avg", "macro avg", "weighted avg")


def page(run: RunFiles) -> list[blocks.Block]:
    """The blocks of a report."""
    return [
        blocks.Heading(f"Fine-tuning report: {run.directory.resolve().name}", 1),
        blocks.Facts(list(_facts(run.report))),
        *_warnings(run),
        *_scores(run.report),
        *_classes(run.report),
        *_confusion(run.report),
        *_calibration(run),
        *_others(run.report),
        *_worst(run),
        *_curves(run.metrics),
        *([blocks.Folded("Configuration", [blocks.Code(run.config)])] if run.config else []),
    ]


def _facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    best = report.get("best") or {}
    yield "task", str(report.get("task", "–"))
    yield "scored on", f"{report.get('split')}, {report.get('examples', 0):,} examples"
    metric = best.get("metric")
    if metric in report and isinstance(report[metric], int | float):
        yield f"{report.get('split')} {metric}", _number(report[metric])
    if metric:
        yield f"best dev {metric}", f"{_number(best.get('value'))} at step {best.get('step')}"
    if isinstance(report.get("labels"), list):
        yield "classes", str(len(report["labels"]))
    if "calibration" in report:
        yield "calibration error", _number(report["calibration"]["ece"])
    yield "model", str(report.get("model", "–"))


def _warnings(run: RunFiles) -> list[blocks.Block]:
    report, lines = run.report, []
    examples, split = report.get("examples", 0), report.get("split")
    if report.get("seen_in_train"):
        lines.append(
            f"{report['seen_in_train']:,} of {examples:,} {split} examples are in the training set "
            "too, word for word: they show memory, not skill"
        )
    if report.get("truncated"):
        lines.append(f"{report['truncated']:,} of {examples:,} {split} examples were cut")
    if split == "dev":
        lines.append("there is no test set: the scores are of dev, which chose the model too")
    lines += run.notes
    return [blocks.Items(lines, is_warning=True)] if lines else []


def _scores(report: dict[str, Any]) -> list[blocks.Block]:
    scalars = {k: v for k, v in report.items() if k not in _NAMES and _is_number(v)}
    if not scalars:
        return []
    sides = [side for side in ("seen", "unseen") if report.get(side)]
    header = ["", "all", *(f"{side} in train" if side == "seen" else side for side in sides)]
    rows = [
        [name, _number(value), *(_number(report[side].get(name)) for side in sides)]
        for name, value in scalars.items()
    ]
    return [blocks.Heading("Scores"), blocks.Table("", header, rows)]


def _classes(report: dict[str, Any]) -> list[blocks.Block]:
    found = report.get("classes")
    if not isinstance(found, dict) or not found:
        return []
    columns = list(next(iter(found.values())))
    averages = [
        [n, *_row(report[n], columns)] for n in _AVERAGES if isinstance(report.get(n), dict)
    ]
    header = ["", *columns]
    rows = [[name or "(none)", *_row(row, columns)] for name, row in found.items()]
    title = blocks.Heading("By class")
    if len(rows) <= _MOST_ROWS:
        return [title, blocks.Table("", header, [*rows, *averages])]
    by = next((name for name in ("f1-score", "f1") if name in columns), columns[0])
    worst = sorted(found, key=lambda name: (not found[name].get("support", 1), found[name][by]))
    shown = [[name, *_row(found[name], columns)] for name in worst[:_MOST_ROWS]]
    caption = f"the {_MOST_ROWS} of {len(rows)} classes with the lowest {by}, and the means of all"
    return [
        title,
        blocks.Table(caption, header, [*shown, *averages]),
        blocks.Folded(f"All {len(rows)} classes", [blocks.Table("", header, rows)]),
    ]


def _confusion(report: dict[str, Any]) -> list[blocks.Block]:
    matrix, names = report.get("confusion_matrix"), report.get("labels")
    if not matrix or not names:
        return []
    found: list[blocks.Block] = [blocks.Heading("What is taken for what")]
    if len(names) <= MOST_DRAWN:
        title = "a row is a right class, a column a predicted one; the shade is the share of a row"
        found.append(blocks.Figure(title, matrix_picture(names, matrix), is_wide=True))
    pairs = [
        [row["label"], row["predicted"], str(row["count"]), f"{row['share']:.1%}"]
        for row in confused_pairs(report)
    ]
    if pairs:
        header = ["right class", "taken for", "examples", "of the class"]
        found.append(blocks.Table("most confused", header, pairs, texts=2))
    return found


def _calibration(run: RunFiles) -> list[blocks.Block]:
    if not run.calibration.count:
        return []
    bins = run.calibration.bins()
    told = run.calibration.as_json()
    gap = told["confidence"] - told["accuracy"]
    way = "more" if gap > 0 else "less"
    rows = [
        [f"{b.low:.2f}–{b.high:.2f}", f"{b.count:,}", f"{b.confidence:.3f}", f"{b.accuracy:.3f}"]
        for b in bins
        if b.count
    ]
    header = ["probability", "predictions", "mean probability", "share right"]
    return [
        blocks.Heading("Calibration"),
        blocks.Paragraph(
            f"Expected calibration error {told['ece']:.4f} over {len(bins)} bins. The model says "
            f"{told['confidence']:.1%} on average and is right in {told['accuracy']:.1%}: "
            f"{abs(gap):.1%} {way} sure than right."
        ),
        blocks.Figure("share that is right, by the probability given", reliability_diagram(bins)),
        blocks.Folded("The bins", [blocks.Table("", header, rows)]),
    ]


def _others(report: dict[str, Any]) -> list[blocks.Block]:
    """Whatever else a task reports, as tables."""
    found: list[blocks.Block] = []
    for name, value in report.items():
        if name in _TOLD or _is_number(value) or not value:
            continue
        title = name.replace("_", " ").capitalize()
        if isinstance(value, dict) and all(isinstance(row, dict) for row in value.values()):
            columns = list(dict.fromkeys(key for row in value.values() for key in row))
            rows = [[key, *_row(row, columns)] for key, row in value.items()]
            found += [blocks.Heading(title), *_long(["", *columns], rows)]
        elif isinstance(value, dict):
            rows = [[key, _number(cell)] for key, cell in value.items()]
            found += [blocks.Heading(title), *_long(["", ""], rows)]
        elif isinstance(value, list) and all(isinstance(row, dict) for row in value):
            columns = list(dict.fromkeys(key for row in value for key in row))
            found += [blocks.Heading(title), *_long(columns, [_row(r, columns) for r in value])]
        elif isinstance(value, str):
            found += [blocks.Heading(title), blocks.Paragraph(value)]
    return found


def _long(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[blocks.Block]:
    """A table; a long one is folded behind its first rows."""
    if len(rows) <= _MOST_ROWS:
        return [blocks.Table("", header, rows)]
    table = blocks.Table("", header, rows)
    return [
        blocks.Table(f"the first {_MOST_ROWS} of {len(rows)}", header, rows[:_MOST_ROWS]),
        blocks.Folded(f"All {len(rows)}", [table]),
    ]


def _worst(run: RunFiles) -> list[blocks.Block]:
    if not run.mistakes:
        return []
    is_told = run.texts is not None
    has_answers = any(one.label is not None for one in run.mistakes)
    rows = [
        [
            str(one.index),
            *([_text(run, one.index)] if is_told else []),
            *([_clipped(one.label), _clipped(one.predicted)] if has_answers else []),
            _number(one.by if run.wrong is None else one.probability),
        ]
        for one in run.mistakes
    ]
    by = "error" if has_answers else "loss"
    by = by if run.wrong is None else "probability"
    answers = ["right", "predicted"] if has_answers else []
    header = ["index", *(["text"] if is_told else []), *answers, by]
    examples = run.report.get("examples", 0)
    told = "the numbers that are furthest off" if has_answers else "the texts of the greatest loss"
    if run.wrong is not None:
        told = f"{run.wrong:,} of {examples:,} are wrong; these with the greatest probability"
        if all(one.probability is None for one in run.mistakes):
            told = f"{run.wrong:,} of {examples:,} are not as they should be; the first of them"
    table = blocks.Table(told, header, rows, texts=len(header) - 1)
    return [blocks.Heading("Worst examples"), table]


def _text(run: RunFiles, index: int) -> str:
    texts = run.texts or ()
    return _clipped(texts[index]) if 0 <= index < len(texts) else "–"


def _clipped(value: Any) -> str:
    if value is None:
        return "–"
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= _SHOWN_TEXT else text[:_SHOWN_TEXT] + "…"


def _curves(metrics: Sequence[dict[str, Any]]) -> list[blocks.Block]:
    scores = dict.fromkeys(
        k for row in metrics for k in row if k.startswith("dev_") and k != "dev_score"
    )
    charts = {
        "loss": {"train": "loss", "dev": "valid_loss"},
        "dev scores": {name.removeprefix("dev_"): name for name in scores},
        "learning rate": {"learning rate": "lr"},
        "gradient norm": {"gradient norm": "grad_norm"},
    }
    figures = []
    for title, quantities in charts.items():
        lines = [
            Line(label, points)
            for label, key in quantities.items()
            if (points := _points(metrics, key))
        ]
        if lines:
            told = legend(lines) if len(lines) > 1 else []
            figures.append(blocks.Figure(title, line_chart(lines, "step"), told))
    return [blocks.Heading("Learning curves"), blocks.Figures(figures)] if figures else []


def _points(metrics: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """A quantity by step; of many steps means of neighbours."""
    found = [(float(r["step"]), float(r[key])) for r in metrics if _is_number(r.get(key))]
    size = -(-len(found) // _MOST_POINTS)
    parts = [found[start : start + size] for start in range(0, len(found), size or 1)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]


def _row(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    return [_number(row.get(column)) for column in columns]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
    return f"{value:,}" if _is_number(value) else _clipped(value)
