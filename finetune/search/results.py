"""What a search leaves: a table, a picture, numbers, and a config that runs."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from finetune.config import FinetuneConfig
from finetune.search.plot import picture
from finetune.search.study import Row
from finetune.tasks.base import LOWER_IS_BETTER
from runtime.config import to_yaml


def shown_score(score: float | None, metric: str) -> str:
    """A score as people know it: a loss is kept negated, the greater the better."""
    return "–" if score is None else f"{-score if metric in LOWER_IS_BETTER else score:.4f}"


def table(rows: Sequence[Row], metric: str) -> str:
    """All trials, the best first, as Markdown."""
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    lines = [
        ["trial", f"dev {metric}", *keys, "state", "evaluations", "seconds"],
        *(
            [
                str(row.number),
                shown_score(row.score, metric),
                *(_text(row.values.get(key)) for key in keys),
                row.state + (f" ({row.reason})" if row.reason else ""),
                str(row.evaluations),
                "–" if row.seconds is None else f"{row.seconds:.1f}",
            ]
            for row in _ranked(rows)
        ),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    out = [" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    out.insert(1, "-|-".join("-" * width for width in widths))
    return "".join(f"| {line} |\n" for line in out)


def _ranked(rows: Sequence[Row]) -> list[Row]:
    states = ("complete", "pruned", "failed", "running")

    def place(row: Row) -> tuple[int, float, int]:
        score = float("inf") if row.score is None else -row.score
        return states.index(row.state), score, row.number

    return sorted(rows, key=place)


def write_results(
    out: Path,
    rows: Sequence[Row],
    config: FinetuneConfig,
    best: Row | None,
    best_config: FinetuneConfig | None,
) -> None:
    """Write search.json, trials.csv, search.md, search.svg and, with a best trial, best.yaml."""
    metric = config.metric
    documents = {
        "search.json": orjson.dumps(
            {
                "metric": metric,
                "best": best and best._asdict(),
                "trials": [row._asdict() for row in rows],
            },
            option=orjson.OPT_INDENT_2,
        ),
        "search.md": table(rows, metric).encode(),
        "trials.csv": _csv(rows, metric).encode(),
        "search.svg": picture(rows, metric).encode(),
    }
    if best_config is not None:
        documents["best.yaml"] = to_yaml(best_config).encode()
    for name, content in documents.items():
        temporary = out / f".{name}.tmp"
        temporary.write_bytes(content)
        temporary.replace(out / name)


def _csv(rows: Sequence[Row], metric: str) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "state", metric, *keys, "seconds", "reason"])
    sign = -1 if metric in LOWER_IS_BETTER else 1
    for row in rows:
        score = None if row.score is None else sign * row.score
        values = [row.values.get(key) for key in keys]
        writer.writerow([row.number, row.state, score, *values, row.seconds, row.reason])
    return stream.getvalue()


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
