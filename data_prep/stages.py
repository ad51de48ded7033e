"""The stages of a run. Each maps a pure function over numbered tasks, wherever these are run.

A task publishes its result last and atomically; one whose result is there is never run again.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic

from data_prep import dedup
from data_prep.atomic import write_atomic
from data_prep.documents import store_path
from data_prep.manifest import FileEntry
from data_prep.plan import Plan
from data_prep.tally import UnitReport, quarantine_path, report_path
from data_prep.tokenizer import FILE
from data_prep.tokenizer_load import place
from data_prep.training_text import training_texts
from data_prep.unit import CleanTask, ShardTask, clean_name, unit_name
from runtime.errors import EXIT_BAD_INPUT, UserError


@dataclass(frozen=True)
class Stage:
    """A function over tasks."""

    name: str
    told: str  # what it does, in a word
    weights: Mapping[int, int]  # of each task, in bytes of input
    task: Callable[[int], object]
    is_done: Callable[[int], bool]
    report: Callable[[int], UnitReport] | None = None  # of a task that is done


def stages(plan: Plan) -> Iterator[Stage]:
    """Yield what a run does, in order. The next stage is known when the one before is complete."""
    new = {unit.index: unit.weight for unit in plan.units if unit.index >= plan.first_unit}
    if plan.config.dedup.is_on:
        reports = _reader(plan, clean_name)
        yield Stage("clean", "cleaning", new, CleanTask(plan), _is_cleaned(plan), reports)
        job = dedup.Job(plan.signatures, len(plan.units), plan.config.dedup, plan.first_unit)
        for number, stage in enumerate(dedup.stages(job)):
            task = MatchTask(plan, f"match_{number}", stage.task)
            even = sum(new.values()) // max(len(stage.numbers), 1)
            weights = dict.fromkeys(stage.numbers, even)
            yield Stage(task.name, f"duplicates: {stage.name}", weights, task, task.is_done)
    if not plan.first_unit:
        tokenizer = TokenizerTask(plan)
        yield Stage("tokenizer", "tokenizer", {0: 0}, tokenizer, tokenizer.is_done)
    reports = _reader(plan, unit_name)
    yield Stage("shards", "tokenising", new, ShardTask(plan), _has_shards(plan), reports)


def stage_named(plan: Plan, name: str) -> Stage:
    """One stage. Raises UserError for a name that the run has not, or not yet."""
    known = []
    for stage in stages(plan):
        if stage.name == name:
            return stage
        known.append(stage.name)
    raise UserError(
        f"{plan.output} has no stage {name!r}, only {', '.join(known)}", status=EXIT_BAD_INPUT
    )


class MatchTask:
    """One task of the search for duplicates; a mark says that it is done."""

    def __init__(self, plan: Plan, name: str, task: Callable[[int], object]) -> None:
        self.plan, self.name = plan, name
        self._task = task

    def is_done(self, number: int) -> bool:
        """Whether the mark is there."""
        return self._mark(number).exists()

    def __call__(self, number: int) -> None:
        """Run it, unless it was."""
        self._task(number)
        write_atomic(self._mark(number), b"")

    def _mark(self, number: int) -> Path:
        return self.plan.work / f"{self.name}_{number:05d}.done"


class TokenizerTask:
    """Put tokenizer.json and its config into the work directory, trained or copied."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def is_done(self, _: int) -> bool:
        """Whether both are there; tokenizer.json is written last."""
        return (self.plan.work / FILE).exists()

    def __call__(self, _: int) -> None:
        """Train or copy. Raises UserError for a tokenizer that cannot be used."""
        work, choice = self.plan.work, self.plan.config.tokenizer
        if choice.path is None:
            from data_prep.tokenizer_train import train

            print(f"training the {choice.train.kind} tokenizer …", flush=True)
            train(choice.train, training_texts(self.plan), work)
            return
        place(choice, work)


def _reader(plan: Plan, name: Callable[[int], str]) -> Callable[[int], UnitReport]:
    return lambda unit: UnitReport.model_validate_json(
        report_path(plan.work, name(unit)).read_bytes()
    )


def _has_shards(plan: Plan) -> Callable[[int], bool]:
    """Whether a unit's report is there, and every file that it names, at its size."""
    read = _reader(plan, unit_name)

    def is_done(unit: int) -> bool:
        try:
            report = read(unit)
            files = [e for s in report.shards for e in (s, s.index, s.origins) if e]
            files += [report.dropped] if report.dropped else []
            whole = all(made_file(plan, e).stat().st_size == e.bytes for e in files)
            return whole and quarantine_path(plan.work, unit_name(unit)).exists()
        except (FileNotFoundError, pydantic.ValidationError):
            return False

    return is_done


def made_file(plan: Plan, entry: FileEntry) -> Path:
    """A file of a shard: in the work directory until the run commits."""
    path = plan.work / entry.file
    return path if path.exists() else plan.output / entry.file


def _is_cleaned(plan: Plan) -> Callable[[int], bool]:
    def is_done(unit: int) -> bool:
        name = clean_name(unit)
        paths = (report_path(plan.work, name), quarantine_path(plan.work, name))
        return all(path.exists() for path in (*paths, store_path(plan, unit)))

    return is_done
