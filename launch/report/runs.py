"""Everything that a run directory says of a run, as far as it is there."""

import itertools
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from finetune.config import FinetuneConfig
from launch.report.series import Curve
from pretrain.config import PretrainConfig
from runtime.config import Config, ConfigError, flat, read_tree
from runtime.records import iter_records
from runtime.redaction import redacted

MOST_EVENTS = 100  # in the table
_MOST_MARKS = 400  # on the curves
_MOST_SCORES = 10_000
_MOST_SAMPLES = 32  # steps for each prompt, thinned evenly
_MOST_BYTES = 4 << 20  # of a file that is read whole
_OF_A_RUN = ("metrics.jsonl", "config.yaml", "events.jsonl", "versions.json", "checkpoints")
_EXPECTED = {
    "metrics.jsonl": "nothing was recorded yet: no curves",
    "config.yaml": "the configuration is not shown",
    "versions.json": "the versions are not shown",
    "clock.jsonl": "what the run cost is not known",
}
# What may be drawn. Other keys of the records are left alone: no page grows with strange names.
KEYS = frozenset(
    {
        *("loss", "valid_loss", "lr", "grad_norm", "update_ratio", "tokens_per_second"),
        *("utilisation", "mfu", "mfu_causal", "memory_bytes", "data_wait", "dev_score"),
        *("valid_accuracy", "valid_unigram_accuracy"),
        *("valid_pair_accuracy", "valid_pair_majority_accuracy"),
    }
)
LISTS = ("tokens_by_source", "epochs_by_source")
_MOST_SOURCES = 40
_AT_ONCE = 4096  # records in memory
_TOO_LARGE = 1 << 53  # from here on doubles, and so pictures, do not tell whole numbers apart


@dataclass
class Cost:
    """What the starts of a run took, added up."""

    starts: int = 0
    seconds: float = 0.0
    rank_seconds: float = 0.0
    devices: set[str] = field(default_factory=set)

    @property
    def has_gpus(self) -> bool:
        """Whether it ran on anything but processors."""
        return bool(self.devices - {"cpu"})


@dataclass
class Run:
    """One run: what was read, and what could not be."""

    name: str
    path: Path
    curves: dict[str, Curve] = field(default_factory=dict)
    records: int = 0
    last_step: int = 0
    tokens_seen: int = 0
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))
    event_counts: Counter[str] = field(default_factory=Counter)
    marks: deque[tuple[int, str, str]] = field(default_factory=lambda: deque(maxlen=_MOST_MARKS))
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by prompt
    scores: list[dict[str, Any]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)  # dotted keys
    defaults: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    classification: dict[str, Any] | None = None
    cost: Cost = field(default_factory=Cost)
    missing: list[str] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """`pretrain` or `finetune`, by its config."""
        return "finetune" if any(key.startswith("task.") for key in self.config) else "pretrain"

    def curve(self, key: str) -> Curve | None:
        """A quantity, or None where no record has a number of it."""
        found = self.curves.get(key)
        return found if found is not None and found.count else None


def find_runs(directory: Path) -> Iterable[Path]:
    """The directory itself, or its run folders, in the order in which they were trained."""
    files = sorted(directory.glob("*/metrics.jsonl"), key=lambda file: file.stat().st_mtime)
    below = [file.parent for file in files if file.is_file()]
    is_run = any((directory / name).exists() for name in _OF_A_RUN)
    return [directory, *below] if is_run else below


def read_run(path: Path, name: str | None = None) -> Run:
    """Read a run directory; what is missing or broken is written down, never raised."""
    run = Run(name or path.resolve().name, path)
    run.missing += [
        f"{file} is missing: {so}" for file, so in _EXPECTED.items() if not (path / file).exists()
    ]
    _read_config(run)
    run.versions = _read_object(run, "versions.json")
    sources = _read_object(run, "data_order.json").get("sources")
    run.sources = list(map(str, sources[:_MOST_SOURCES])) if isinstance(sources, list) else []
    run.classification = _read_object(run, "report.json") or None
    records = _records(run, "metrics.jsonl")
    while chunk := list(itertools.islice(records, _AT_ONCE)):
        _add_records(run, chunk)
    for event in _records(run, "events.jsonl"):
        _add_event(run, event)
    for sample in _records(run, "samples.jsonl"):
        _add_sample(run, sample)
    scores = [score for score in _records(run, "scores.jsonl") if _is_score(score)]
    # What was scored again counts as it was the last time, and stands where it was first.
    last = {(s["step"], str(s.get("kind", "")), s["name"]): s for s in scores}
    run.scores = list(last.values())[-_MOST_SCORES:]
    _read_clock(run)
    if not run.records and (path / "metrics.jsonl").exists():
        run.missing.append("metrics.jsonl has no record yet: no curves")
    return run


def _records(run: Run, name: str) -> Iterator[dict[str, Any]]:
    broken = 0
    is_last_broken = False
    try:
        for record in iter_records(run.path / name):
            is_last_broken = record is None or not _is_count(record.get("step"))
            broken += is_last_broken
            if record is not None and not is_last_broken:
                yield record
    except OSError as error:
        run.missing.append(f"{name} cannot be read: {error.strerror}")
    if broken == 1 and is_last_broken:
        run.missing.append(f"{name}: the last line is cut off and was left out")
    elif broken:
        run.missing.append(f"{name}: {broken:,} lines are no records and were left out")


def _add_records(run: Run, records: list[dict[str, Any]]) -> None:
    """Add some records column by column: a million of them one by one would take a minute."""
    run.records += len(records)
    run.last_step = records[-1]["step"]
    for record in records:
        if _is_count(record.get("tokens_seen")):
            run.tokens_seen = record["tokens_seen"]
        else:
            record["tokens_seen"] = None  # no axis has room for it
    for key in KEYS:
        rows = [(r["step"], r.get("tokens_seen"), r[key]) for r in records if key in r]
        _add_column(run, key, rows)
    for key in LISTS:
        lists = [r for r in records if isinstance(r.get(key), list)]
        most = min(_MOST_SOURCES, max((len(r[key]) for r in lists), default=0))
        for place in range(most):
            rows = [
                (r["step"], r.get("tokens_seen"), r[key][place])
                for r in lists
                if len(r[key]) > place
            ]
            _add_column(run, f"{key}/{place}", rows)


def _add_column(run: Run, key: str, rows: list[tuple[Any, Any, Any]]) -> None:
    if not rows:
        return
    try:
        values = np.array(rows, dtype=np.float64)  # null becomes NaN
    except (TypeError, ValueError):
        values = np.array([[_number(item) for item in row] for row in rows])
    if key == "memory_bytes":
        values[:, 2] /= 1 << 30
    if key not in run.curves:
        run.curves[key] = Curve()
    run.curves[key].add_all(values)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _TOO_LARGE


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _add_event(run: Run, event: dict[str, Any]) -> None:
    kind = str(event.get("kind", "event")).replace("_", " ")
    run.events.append(event)
    run.event_counts[kind] += 1
    run.marks.append((event["step"], kind, str(event.get("message", ""))[:200]))


def _add_sample(run: Run, sample: dict[str, Any]) -> None:
    prompt = str(sample.get("prompt", ""))
    if prompt not in run.samples and len(run.samples) >= _MOST_SAMPLES:
        return
    held = run.samples.setdefault(prompt, [])
    held.append(sample)
    if len(held) > _MOST_SAMPLES:
        del held[1:-1:2]  # the first and the newest stay


def _is_score(score: dict[str, Any]) -> bool:
    return isinstance(score.get("metrics"), dict) and isinstance(score.get("name"), str)


def _read_clock(run: Run) -> None:
    """Of each start the last line counts."""
    starts: dict[float, dict[str, Any]] = {}
    for line in _records(run, "clock.jsonl"):
        numbers = (line.get("start"), line.get("time"), line.get("ranks"))
        if all(isinstance(n, int | float) and abs(n) < _TOO_LARGE for n in numbers):
            starts[line["start"]] = line
    for line in starts.values():
        seconds = max(0.0, line["time"] - line["start"])
        run.cost.starts += 1
        run.cost.seconds += seconds
        run.cost.rank_seconds += seconds * line["ranks"]
        run.cost.devices.add(str(line.get("device", "")))


def _read_object(run: Run, name: str) -> dict[str, Any]:
    path = run.path / name
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _MOST_BYTES:
            run.missing.append(f"{name} is larger than {_MOST_BYTES >> 20} MiB and was left out")
            return {}
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        run.missing.append(f"{name} cannot be read: {' '.join(str(error).split())[:100]}")
        return {}
    if not isinstance(found, dict):
        run.missing.append(f"{name} holds no object and was left out")
        return {}
    return found


def _read_config(run: Run) -> None:
    path = run.path / "config.yaml"
    if not path.is_file():
        return
    try:
        run.config = flat(redacted(read_tree(path)))
    except ConfigError as error:
        run.missing.append(f"config.yaml cannot be read: {str(error)[:200]}")
    schema = FinetuneConfig if run.stage == "finetune" else PretrainConfig
    run.defaults = flat(_defaults(schema))


def _defaults(schema: type[Config]) -> dict[str, Any]:
    """What each key is when nobody writes it, as JSON would hold it."""
    found: dict[str, Any] = {}
    for name, info in schema.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Config):
            found[name] = _defaults(kind)
        elif not info.is_required():
            value = info.get_default(call_default_factory=True, validated_data={})
            found[name] = orjson.loads(orjson.dumps(value))
    return found


def changed(run: Run) -> dict[str, Any]:
    """The settings that differ from the defaults, and those that have none."""
    absent = object()
    return {k: v for k, v in run.config.items() if run.defaults.get(k, absent) != v}
