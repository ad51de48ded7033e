"""A fine-tuning run as its files tell it. Torch-free."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from finetune.config import FinetuneConfig, read_sets
from finetune.report.calibration import Calibration
from finetune.tasks import task_of
from runtime.config import load
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.records import iter_records, read_metrics

WORST = 20  # examples that are shown
MOST_PAIRS = 15  # of classes that are confused


@dataclass(frozen=True)
class Mistake:
    """An example that the model got wrong."""

    index: int
    label: Any
    predicted: Any
    probability: float | None
    by: float  # how bad it is: the greatest comes first


@dataclass
class RunFiles:
    """What a report is made of."""

    directory: Path
    report: dict[str, Any]
    metrics: list[dict[str, Any]]
    config: str  # YAML
    calibration: Calibration
    mistakes: list[Mistake]
    wrong: int | None  # how many are wrong; none where nothing is right or wrong
    texts: Sequence[str] | None = None  # of the scored examples, in their order
    notes: list[str] = field(default_factory=list)


def read_run(directory: Path, texts: Sequence[str] | None = None) -> RunFiles:
    """Read a finished run. Raises UserError where its files are missing or damaged."""
    path = directory / "report.json"
    try:
        report = orjson.loads(path.read_bytes())
        if not isinstance(report, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError as error:
        message = f"{directory}: no report.json; it is written when a fine-tuning run ends"
        raise UserError(message, status=EXIT_BAD_INPUT) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}", status=EXIT_BAD_INPUT) from error
    config = directory / "config.yaml"
    calibration = Calibration()
    mistakes, wrong = _mistakes(directory / "predictions.jsonl", calibration)
    return RunFiles(
        directory,
        report,
        read_metrics(directory / "metrics.jsonl"),
        config.read_text(encoding="utf-8") if config.is_file() else "",
        calibration,
        mistakes,
        wrong,
        texts,
    )


def read_texts(run: RunFiles) -> None:
    """Read the scored texts again from the data files, or note why they can't be shown."""
    try:
        texts = _texts(run)
    except UserError as error:
        run.notes.append(f"texts are not shown, as the data cannot be read: {error}")
        return
    if len(texts) == run.report.get("examples"):
        run.texts = texts
    else:
        run.notes.append("texts are not shown: the data files are not those of the run any more")


def _texts(run: RunFiles) -> list[str]:
    config = load(FinetuneConfig, run.directory / "config.yaml")
    split = run.report.get("split")
    path = config.data.test if split == "test" else config.data.dev
    if path is not None:
        examples = task_of(config.task).read(Path(path)).examples
    else:
        sets, problems = read_sets(config)
        if problems:
            raise UserError(problems[0].message)
        examples = sets.dev
    return [example.text for example in examples]


def _mistakes(path: Path, calibration: Calibration) -> tuple[list[Mistake], int | None]:
    """The worst predictions of a file, and how many are wrong; one line is in memory at a time."""
    worst: list[tuple[float, int, Mistake]] = []
    wrong, is_known = 0, False
    for place, row in enumerate(iter_records(path)):
        if row is None or "predicted" not in row:
            continue
        mistake = _judged(place, row)
        if "label" in row and not _is_number(row["label"]):
            is_known = True
            wrong += mistake is not None
            _calibrate(calibration, row, is_right=mistake is None)
        if mistake is not None:
            heapq.heappush(worst, (mistake.by, -place, mistake))
            if len(worst) > WORST:
                heapq.heappop(worst)
    found = [mistake for _, _, mistake in sorted(worst, key=lambda one: one[:2], reverse=True)]
    return found, wrong if is_known else None


def _judged(place: int, row: dict[str, Any]) -> Mistake | None:
    """A prediction as a mistake, if it is one; of numbers each is, by its size or its error."""
    label, predicted = row.get("label"), row["predicted"]
    index = int(row.get("index", place))
    if _is_number(predicted) and ("label" not in row or _is_number(label)):
        return Mistake(index, label, predicted, None, abs((label or 0) - predicted))
    # Questions have several right answers, of which the label is the first.
    right = row.get("answers") or label
    if "label" not in row or _is_right(right, _bare(predicted)):
        return None
    probability = row.get("probability")
    number = float(probability) if isinstance(probability, int | float) else None
    return Mistake(index, label, predicted, number, number or 0.0)


def _is_right(label: Any, predicted: Any) -> bool:
    """Whether an answer is the right one, or one of several."""
    is_one_of = isinstance(label, list) and isinstance(predicted, str)
    return predicted in label if is_one_of else _bare(label) == predicted


def _bare(value: Any) -> Any:
    """An answer without what the model thinks of it."""
    if isinstance(value, dict):
        return {name: _bare(part) for name, part in value.items() if name != "probability"}
    return [_bare(part) for part in value] if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _calibrate(calibration: Calibration, row: dict[str, Any], *, is_right: bool) -> None:
    probability = row.get("probability")
    # One answer with one probability: of several answers nobody knows which it is of.
    if isinstance(probability, int | float) and isinstance(row["predicted"], str):
        calibration.add(float(probability), is_right=is_right)


def confused_pairs(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Which classes are taken for which others most often, from the confusion matrix."""
    matrix, names = report.get("confusion_matrix"), report.get("labels")
    if not matrix or not names:
        return
    found = [
        (count, -i, -j, sum(row))
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    for count, i, j, support in heapq.nlargest(MOST_PAIRS, found):
        pair = {"label": names[-i], "predicted": names[-j]}
        yield {**pair, "count": count, "share": count / support}
