"""Runs as one self-contained HTML page: curves, scores, samples, configuration. No scripts."""

import html
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from launch.report.charts import Series, confusion, curves
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.records import read_metrics

_MOST_EVENTS = 100


class _Run(NamedTuple):
    name: str
    path: Path
    records: list[dict[str, Any]]

    def series(self, label: str, key: str) -> list[Series]:
        with_key = [record for record in self.records if record.get(key) is not None]
        steps, values = [r["step"] for r in with_key], [r[key] for r in with_key]
        return [(label, steps, values)] if with_key else []

    def last(self, key: str) -> Any:
        return next((r[key] for r in reversed(self.records) if r.get(key) is not None), None)


def write_report(directories: Sequence[Path], output: Path) -> Path:
    """Write the page for run directories, or for folders that hold some. Raises UserError."""
    runs = [run for directory in directories for run in _find_runs(directory)]
    if not runs:
        listed = ", ".join(map(str, directories))
        raise UserError(f"{listed}: no run here (no metrics.jsonl)", status=EXIT_BAD_INPUT)
    samples = [d / "sample.txt" for d in directories if (d / "sample.txt").is_file()]
    body = "".join(_run_section(run) for run in runs) + "".join(map(_sample_section, samples))
    title = " · ".join(directory.resolve().name for directory in directories)
    page = _PAGE.format(title=html.escape(title), style=_STYLE, body=body)
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}") from error
    return output


def _find_runs(directory: Path) -> Iterable[_Run]:
    """The directory itself, or its run folders, in the order in which they were trained."""
    files = [directory / "metrics.jsonl", *directory.glob("*/metrics.jsonl")]
    present = [f for f in files if f.is_file()]
    for file in sorted(present, key=lambda f: f.stat().st_mtime):
        yield _Run(file.parent.name, file.parent, read_metrics(file))


def _run_section(run: _Run) -> str:
    charts = [
        curves(
            "loss",
            [*run.series("train", "loss"), *run.series("validation", "valid_loss")],
            unit="nats",
        ),
        *_accuracies(run),
        *_single(run, "dev score", "dev_score", ""),
        *_single(run, "learning rate", "lr", "", noisy=False),
        *_single(run, "gradient norm", "grad_norm", "", log=True),
        *_single(run, "update ÷ weight norm", "update_ratio", "", log=True),
        *_single(run, "throughput", "tokens_per_second", "tokens / s"),
        *_single(run, "positions that hold a token", "utilisation", "share"),
        *_single(run, "model-FLOPs utilisation", "mfu", "share of peak"),
    ]
    parts = [
        f"<h2>{html.escape(run.name)}</h2>",
        _facts(_summary(run)),
        f'<div class="charts">{"".join(f"<figure>{c}</figure>" for c in charts)}</div>',
        _classification(run),
        _events(run),
        _details("configuration", run.path / "config.yaml"),
        _details("versions", run.path / "versions.json"),
    ]
    return f"<section>{''.join(parts)}</section>"


def _single(run: _Run, title: str, key: str, unit: str, **style: bool) -> list[str]:
    series = run.series(title, key)
    return [curves(title, series, unit=unit, **style)] if series else []


def _accuracies(run: _Run) -> list[str]:
    """What a masked language model guesses right, beside the most frequent token's share."""
    series = [
        *run.series("hidden tokens", "valid_accuracy"),
        *run.series("guessing the most frequent token", "valid_unigram_accuracy"),
        *run.series("sentence pairs", "valid_pair_accuracy"),
        *run.series("guessing the more frequent label", "valid_pair_majority_accuracy"),
    ]
    return [curves("validation accuracy", series, unit="share right")] if series else []


def _summary(run: _Run) -> list[tuple[str, str]]:
    rates = [r["tokens_per_second"] for r in run.records if r.get("tokens_per_second")]
    valid = [r["valid_loss"] for r in run.records if r.get("valid_loss") is not None]
    memory = run.last("memory_bytes")
    accuracy, pairs = run.last("valid_accuracy"), run.last("valid_pair_accuracy")
    # Of a loss over hidden tokens, or with pairs in it, it would say nothing.
    has_perplexity = accuracy is None and not (run.path / "report.json").exists()
    facts = [
        ("steps", f"{run.records[-1]['step']:,}" if run.records else "0"),
        ("tokens seen", f"{run.last('tokens_seen') or 0:,}"),
        ("last training loss", _number(run.last("loss"))),
        ("best validation loss", f"{_number(min(valid))} nats" if valid else ""),
        ("perplexity", _number(math.exp(min(valid))) if has_perplexity and valid else ""),
        ("hidden tokens guessed right", "" if accuracy is None else f"{accuracy:.1%}"),
        ("sentence pairs told apart", "" if pairs is None else f"{pairs:.1%}"),
        ("median tokens / s", f"{statistics.median(rates):,.0f}" if rates else ""),
        ("model-FLOPs utilisation", _utilisation(run)),
        ("memory", f"{memory / 2**30:.2f} GiB" if memory else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _utilisation(run: _Run) -> str:
    if not any("mfu" in record for record in run.records):
        return ""
    mfu = run.last("mfu")
    return f"{mfu:.1%}" if mfu is not None else "n/a (unknown device)"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"


def _facts(facts: list[tuple[str, str]]) -> str:
    items = "".join(
        f"<div><dt>{html.escape(n)}</dt><dd>{html.escape(v)}</dd></div>" for n, v in facts
    )
    return f"<dl>{items}</dl>"


def _classification(run: _Run) -> str:
    """Per-class scores and the confusion matrix of a fine-tuned classifier."""
    try:
        report = orjson.loads((run.path / "report.json").read_bytes())
    except OSError:
        return ""
    rows = "".join(_score_row(name, scores) for name, scores in report["classes"].items())
    rows += "".join(_score_row(name, report[name]) for name in ("macro avg", "weighted avg"))
    table = (
        "<table><thead><tr><th>class</th><th>precision</th><th>recall</th><th>F1</th>"
        f"<th>support</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    matrix = confusion(report["labels"], report["confusion_matrix"])
    return (
        f"<h3>Classification of the {html.escape(report['split'])} set: "
        f"accuracy {report['accuracy']:.1%}</h3>"
        f'<div class="scores"><div class="scroll">{table}</div><figure>{matrix}</figure></div>'
    )


def _events(run: _Run) -> str:
    """What befell the run: bad steps, roll-backs, slow ranks; the last of them."""
    events = read_metrics(run.path / "events.jsonl")
    if not events:
        return ""
    told = events[-_MOST_EVENTS:]
    rows = "".join(
        f"<tr><th>{event['step']:,}</th><td>{html.escape(event['kind'].replace('_', ' '))}</td>"
        f'<td class="text">{html.escape(event.get("message", ""))}</td></tr>'
        for event in told
    )
    which = f", the last {len(told)} of {len(events):,}" if len(told) < len(events) else ""
    head = "<thead><tr><th>step</th><th>what</th><th></th></tr></thead>"
    table = f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
    return f"<h3>Events{which}</h3>{table}"


def _score_row(name: str, scores: dict[str, float]) -> str:
    cells = "".join(f"<td>{scores[k]:.3f}</td>" for k in ("precision", "recall", "f1-score"))
    return f"<tr><th>{html.escape(name)}</th>{cells}<td>{scores['support']:.0f}</td></tr>"


def _sample_section(path: Path) -> str:
    text = html.escape(path.read_text(encoding="utf-8", errors="replace"))
    return f"<section><h2>generated sample</h2><pre>{text}</pre></section>"


def _details(title: str, path: Path) -> str:
    if not path.is_file() or path.stat().st_size > 1 << 20:
        return ""
    text = html.escape(path.read_text(encoding="utf-8"))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"


_STYLE = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1f2937; }
body { margin: 0 auto; max-width: 1180px; padding: 1rem; background: #fff; }
h1 { font-size: 1.5rem; } h2 { border-bottom: 2px solid #e5e7eb; padding-bottom: .25rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem; }
dl div { background: #f3f4f6; border-radius: .5rem; padding: .5rem .75rem; }
dt { font-size: .8rem; color: #4b5563; } dd { margin: 0; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.charts, .scores { gap: 1rem; } .scores { display: flex; flex-wrap: wrap; }
figure { margin: 0; } .scores figure { flex: 1 1 24rem; max-width: 40rem; }
svg { width: 100%; height: auto; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #e5e7eb; text-align: right; }
td.text { text-align: left; }
th:first-child { text-align: left; font-weight: 500; }
pre { background: #f3f4f6; border-radius: .5rem; padding: .75rem; overflow-x: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; } summary { cursor: pointer; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – Ingot</title><style>{style}</style></head>
<body><h1>{title}</h1>{body}</body></html>
"""
