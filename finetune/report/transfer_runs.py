"""The runs of a transfer report, one process after the other, and what each has found."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import orjson

from finetune.config import FinetuneConfig
from finetune.report.transfer_plan import Plan, Way
from finetune.runs import carry_out, last_words
from finetune.tasks import task_of
from finetune.tasks.base import LOWER_IS_BETTER
from runtime.errors import EXIT_FAILED, EXIT_PREEMPTED, UserError
from runtime.records import read_metrics
from runtime.signals import StopRequest


class Result(TypedDict, total=False):
    """What one run has found."""

    seed: int
    scores: dict[str, float]  # of the test set (else dev), by the best model
    seen: dict[str, float]  # of its examples that are in train too
    unseen: dict[str, float]
    classes: dict[str, float]  # F1 of each class
    split: str
    examples: int
    seen_in_train: int
    curve: list[tuple[int, float]]  # step, the metric on dev
    best_step: int
    best_dev: float
    seconds: float


def run(plan: Plan, way: Way, seed: int, stop: StopRequest) -> Result:
    """Train one way with one seed, unless it is done. Raises UserError, status 75 when stopped."""
    directory = plan.run_dir(way, seed)
    if not _is_done(directory):
        log = plan.output / "logs" / f"{directory.name}.txt"
        status = carry_out([str(plan.file), *plan.overrides_of(way, seed)], 1, log, stop)
        if status or not _is_done(directory):
            told = f"{way.name}, seed {seed}: the run failed: {last_words(log)} ({log})"
            # A run that was told to stop by somebody else has saved, and can go on.
            raise UserError(
                told, status=EXIT_PREEMPTED if status == EXIT_PREEMPTED else EXIT_FAILED
            )
    if not plan.keeps_models:
        for part in ("checkpoints", "best"):
            shutil.rmtree(directory / part, ignore_errors=True)
    return read_result(directory, plan.config(way, seed), seed)


def _is_done(directory: Path) -> bool:
    return all((directory / name).is_file() for name in ("report.json", "predictions.jsonl"))


def read_result(directory: Path, config: FinetuneConfig, seed: int) -> Result:
    """What the files of a finished run say. Raises UserError where they are damaged."""
    path = directory / "report.json"
    try:
        report = orjson.loads(path.read_bytes())
        found = of_report(report, config)
        best = report["best"]
        found["best_step"], found["best_dev"] = int(best["step"]), float(best["value"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the report of a finished run ({error!r})") from error
    found["seed"] = seed
    found["curve"] = _curve(directory, config.metric)
    found["seconds"] = _seconds(directory)
    return found


def of_report(report: dict[str, Any], config: FinetuneConfig) -> Result:
    """The part of a result that stands in a report.json."""
    names = [*task_of(config.task).metrics, "loss"]
    found: Result = {
        "scores": _numbers(report, names),
        "split": report["split"],
        "examples": report["examples"],
        "seen_in_train": report["seen_in_train"],
        "classes": {
            name: float(row.get("f1-score", row.get("f1")))
            for name, row in report.get("classes", {}).items()
            if row["support"]
        },
    }
    if report.get("seen") and report.get("unseen"):
        found["seen"], found["unseen"] = (_numbers(report[k], names) for k in ("seen", "unseen"))
    return found


def _numbers(report: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    return {name: float(report[name]) for name in dict.fromkeys(names) if name in report}


def _curve(directory: Path, metric: str) -> list[tuple[int, float]]:
    """The metric on dev after each evaluation; of steps that were done twice the last one."""
    key = "valid_loss" if metric == "loss" else f"dev_{metric}"
    records = read_metrics(directory / "metrics.jsonl")
    found = {int(r["step"]): float(r[key]) for r in records if key in r}
    return sorted(found.items())


def _seconds(directory: Path) -> float:
    """How long the run has lasted, all its starts together."""
    lasted: dict[float, float] = {}
    for record in read_metrics(directory / "clock.jsonl"):
        lasted[record["start"]] = record["time"] - record["start"]
    return sum(lasted.values())


def first_reaching(curve: Sequence[tuple[int, float]], goal: float, metric: str) -> int | None:
    """The first step of a curve that is as good as `goal`; None where none is."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return next((step for step, value in curve if sign * value >= sign * goal), None)
