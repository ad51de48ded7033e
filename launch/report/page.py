"""Runs as one self-contained HTML page: curves, scores, samples, configuration. No scripts."""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.report import compare, sections
from launch.report.charts import Line, Mark, chart
from launch.report.runs import Run, find_runs, read_run
from launch.report.style import SCRIPT, STYLE, hash_of
from runtime.errors import EXIT_BAD_INPUT, UserError

_MOST_SAMPLE_BYTES = 1 << 20


class Single(NamedTuple):
    """A chart of one quantity."""

    title: str
    key: str
    unit: str = ""
    log: bool = False
    noisy: bool = True
    has_marks: bool = False


QUANTITIES = (
    Single("learning rate", "lr", noisy=False),
    Single("gradient norm", "grad_norm", log=True, has_marks=True),
    Single("update ÷ weight norm", "update_ratio", log=True),
    Single("throughput", "tokens_per_second", "tokens / s", has_marks=True),
    Single("waiting for data", "data_wait", "share of the time"),
    Single("positions that hold a token", "utilisation", "share"),
    Single("memory", "memory_bytes", "GiB", noisy=False),
)
_GROUPS = (
    (
        "validation accuracy",
        "share right",
        (
            ("hidden tokens", "valid_accuracy"),
            ("guessing the most frequent token", "valid_unigram_accuracy"),
            ("sentence pairs", "valid_pair_accuracy"),
            ("guessing the more frequent label", "valid_pair_majority_accuracy"),
        ),
    ),
    ("dev score", "", (("dev score", "dev_score"),)),
    (
        "model-FLOPs utilisation",
        "share of peak",
        (("full attention counted", "mfu"), ("causal half counted", "mfu_causal")),
    ),
)


def write_report(
    directories: Sequence[Path], output: Path, rates: sections.Rates | None = None
) -> Path:
    """Write the page for run directories, or for folders that hold some. Raises UserError."""
    page = make_page(directories, rates or sections.Rates())
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", errors="replace")
        temporary.replace(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}") from error
    return output


def make_page(directories: Sequence[Path], rates: sections.Rates, *, is_live: bool = False) -> str:
    """The page as text. is_live: with the script that asks a server for it again."""
    paths = list(dict.fromkeys(path for given in directories for path in find_runs(given)))
    if not paths:
        listed = ", ".join(map(str, directories))
        raise UserError(
            f"{listed}: no run here (no metrics.jsonl, config.yaml or events.jsonl)",
            status=EXIT_BAD_INPUT,
        )
    runs = [read_run(path, name) for path, name in zip(paths, names_of(paths), strict=True)]
    alike = [[run for run in runs if run.stage == stage] for stage in ("pretrain", "finetune")]
    groups = [group for group in alike if len(group) > 1]
    body = "".join(compare.section(group, QUANTITIES, rates) for group in groups)
    for run in runs:
        content = run_section(run, rates)
        is_compared = any(run in group for group in groups)
        if is_compared:
            content = sections.folded(f"{run.name}, by itself", content, f"{run.path}/run")
        else:
            content = f"<h2>{html.escape(run.name)}</h2>{content}"
        body += f"<section>{content}</section>"
    body += "".join(_written_sample(directory / "sample.txt") for directory in directories)
    title = " · ".join(directory.resolve().name for directory in directories)
    scripts = f"script-src {hash_of(SCRIPT)}; connect-src 'self'; " if is_live else ""
    return _PAGE.format(
        title=html.escape(title),
        policy=html.escape(
            f"default-src 'none'; {scripts}style-src {hash_of(STYLE)}; base-uri 'none'; "
            "form-action 'none'"
        ),
        style=STYLE,
        state='<p id="state" class="note" role="status">live</p>' if is_live else "",
        body=body,
        script=f"<script>{SCRIPT}</script>" if is_live else "",
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many before it as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def run_section(run: Run, rates: sections.Rates) -> str:
    """Everything about one run, without its heading."""
    classification = sections.classification(run)
    return "".join(
        [
            sections.missing(run),
            sections.facts(sections.summary(run, rates)),
            f'<div class="charts">{"".join(_charts(run))}</div>',
            classification,
            sections.mixture(run),
            _scores(run),
            sections.samples(run),
            sections.events(run),
            sections.configuration(run),
            sections.versions(run),
        ]
    )


def _charts(run: Run) -> list[str]:
    marks = [Mark(*mark) for mark in run.marks]
    found = [
        chart(
            "loss",
            _lines(run, (("train", "loss"), ("validation", "valid_loss"))),
            unit="nats",
            marks=marks,
        )
    ]
    found += [chart(title, _lines(run, keys), unit=unit) for title, unit, keys in _GROUPS]
    for single in QUANTITIES:
        lines = _lines(run, ((single.title, single.key),), noisy=single.noisy)
        shown = marks if single.has_marks else ()
        found.append(chart(single.title, lines, unit=single.unit, log=single.log, marks=shown))
    if len(run.sources) > 1:
        keys = tuple((name, f"tokens_by_source/{place}") for place, name in enumerate(run.sources))
        found.append(chart("data by source", _lines(run, keys, noisy=False), unit="tokens"))
    return found


def _lines(run: Run, keys: Sequence[tuple[str, str]], *, noisy: bool = True) -> list[Line]:
    curves = ((label, run.curve(key)) for label, key in keys)
    return [Line(label, curve, noisy) for label, curve in curves if curve is not None]


def _scores(run: Run) -> str:
    """What `python -m pretrain evaluate` found, over the steps of the checkpoints."""
    if not run.scores:
        return ""
    figures = [
        chart(title, [Line(title, curve, noisy=False)])
        for title, curve in compare.scores_of(run).items()
        if curve.count > 1  # one point is no curve, and stands in the table
    ]
    rows = [
        [
            f"{score['step']:,}",
            sections.shortened(score["name"]),
            html.escape(str(score.get("kind", ""))),
            html.escape(compare.in_words(score["metrics"])),
            html.escape(compare.in_words(counts if isinstance(counts, dict) else {})),
        ]
        for score in run.scores[-100:]
        for counts in [score.get("counts")]
    ]
    shown = sections.table(
        ["step", "name", "kind", "metrics", "of"],
        rows,
        text=(1, 2, 3, 4),
        caption="the newest last",
    )
    return f'<h3>Evaluation</h3><div class="charts">{"".join(figures)}</div>{shown}'


def _written_sample(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_SAMPLE_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        text = f"{path.name} cannot be read: {error.strerror}"
    return f"<section><h2>generated sample</h2><pre>{html.escape(text)}</pre></section>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title} – Ingot</title><style>{style}</style></head>
<body><h1>{title}</h1>{state}
<input class="choice" type="radio" name="x" id="x-step" checked>
<input class="choice" type="radio" name="x" id="x-tokens">
<p class="choices note">curves over <label for="x-step">steps</label>
<label for="x-tokens">tokens</label></p>
<main>{body}</main>{script}</body></html>
"""
