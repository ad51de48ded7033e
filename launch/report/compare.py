"""Several runs of one kind side by side: a chart for each quantity, and what differs."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launch.report import sections
from launch.report.charts import Line, chart
from launch.report.runs import Run
from launch.report.series import Curve

if TYPE_CHECKING:
    from launch.report.page import Single

_NAMES_OF_A_RUN = {"run.name", "run.dir"}
_MOST_SCORES = 24  # charts
_OF_TEXTS = ("perplexity", "bits_per_byte")


def section(runs: Sequence[Run], quantities: Sequence["Single"], rates: sections.Rates) -> str:
    """All of them, of one stage, in one section."""
    charts = [
        _overlay(runs, "training loss", "loss", "nats"),
        _overlay(runs, "validation loss", "valid_loss", "nats"),
        _overlay(runs, "validation accuracy", "valid_accuracy", "share right"),
        _overlay(runs, "dev score", "dev_score", ""),
        _overlay(runs, "model-FLOPs utilisation", "mfu", "share of peak"),
    ]
    for single in quantities:
        lines = _lines(runs, single.key, noisy=single.noisy)
        charts.append(chart(single.title, lines, unit=single.unit, log=single.log))
    charts += _score_charts(runs)
    count = {"pretrain": "pretraining", "finetune": "fine-tuning"}[runs[0].stage]
    return (
        f"<section><h2>{len(runs)} {count} runs compared</h2>{_final_numbers(runs, rates)}"
        f'<div class="charts">{"".join(charts)}</div>{_differences(runs)}</section>'
    )


def _overlay(runs: Sequence[Run], title: str, key: str, unit: str) -> str:
    return chart(title, _lines(runs, key), unit=unit)


def _lines(runs: Sequence[Run], key: str, *, noisy: bool = True) -> list[Line]:
    """A line for each run that has the quantity; a run keeps its colour from chart to chart."""
    curves = [(place, run.name, run.curve(key)) for place, run in enumerate(runs)]
    return [Line(name, curve, noisy, place) for place, name, curve in curves if curve]


def _final_numbers(runs: Sequence[Run], rates: sections.Rates) -> str:
    """A row for each run, a column for each number that any of them has."""
    found = [dict(sections.summary(run, rates)) for run in runs]
    names = list(dict.fromkeys(name for numbers in found for name in numbers))
    rows = [
        [html.escape(run.name), *(html.escape(numbers.get(name, "–")) for name in names)]
        for run, numbers in zip(runs, found, strict=True)
    ]
    return sections.table(["run", *names], rows, caption="where each run is now")


def _differences(runs: Sequence[Run]) -> str:
    """The settings that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = []
    for key in keys:
        values = [sections.setting(run.config[key]) if key in run.config else "–" for run in runs]
        if len(set(values)) > 1 and key not in _NAMES_OF_A_RUN:
            rows.append([html.escape(key), *map(html.escape, values)])
    if not rows:
        return "<h3>What differs</h3><p>No setting but the runs' names and places.</p>"
    columns = range(1, len(runs) + 1)
    head = ["key", *(run.name for run in runs)]
    caption = f"{len(rows)} settings differ"
    return f"<h3>What differs</h3>{sections.table(head, rows, text=columns, caption=caption)}"


def scores_of(run: Run) -> dict[str, Curve]:
    """The metrics worth a curve of each evaluation over the steps, by `name: metric`."""
    curves: dict[str, Curve] = {}
    for score in sorted(run.scores, key=lambda score: int(score["step"])):
        kind = str(score.get("kind", ""))
        for metric, value in score["metrics"].items():
            if isinstance(value, int | float) and _has_curve(kind, metric):
                title = f"{score['name']}: {metric}"
                if title in curves or len(curves) < _MOST_SCORES:
                    curve = curves.setdefault(title, Curve())
                    curve.add(score["step"], _tokens_at(run, score["step"]), value)
    return {title: curve for title, curve in curves.items() if curve.count}


def _has_curve(kind: str, metric: str) -> bool:
    """Of a text's numbers those that the others follow from; of a task's all but the errors."""
    return metric in _OF_TEXTS if kind.endswith("perplexity") else "_stderr" not in metric


def _tokens_at(run: Run, step: int) -> float:
    """Tokens seen at a step, which scores do not say."""
    return run.tokens_seen * step / run.last_step if run.last_step else math.nan


def in_words(numbers: dict[str, Any]) -> str:
    """The metrics, or the counts, of one evaluation in a line."""
    return ", ".join(
        f"{name} {value:,}"
        if isinstance(value, int)
        else f"{name} {value:.5g}"
        if isinstance(value, float)
        else f"{name} {value}"
        for name, value in numbers.items()
    )[:500]


def _score_charts(runs: Sequence[Run]) -> list[str]:
    found = [scores_of(run) for run in runs]
    titles = list(dict.fromkeys(title for curves in found for title in curves))
    charts = []
    for title in titles[:_MOST_SCORES]:
        curves = [(place, held.get(title)) for place, held in enumerate(found)]
        lines = [Line(runs[place].name, curve, False, place) for place, curve in curves if curve]
        charts.append(chart(title, lines))
    return charts
