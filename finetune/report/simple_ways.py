"""What needs no model: TF-IDF with logistic regression, and the most frequent class."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.config import FinetuneConfig, Sets
from finetune.report.transfer_runs import Result, of_report
from finetune.tasks import task_of
from finetune.tasks.base import Encoded, seen_in

TFIDF = "tfidf"
MAJORITY = "majority"
KINDS = ("classification",)  # of tasks that have these

LogProbabilities = npt.NDArray[np.float32]  # (N, classes)
Model = Callable[[list[str]], LogProbabilities]


def results(config: FinetuneConfig, sets: Sets) -> dict[str, Result]:
    """Learn from the run's own examples and score on its own test set (else dev).

    They need no dev set to choose by: where dev is a share of train, they learn from it too.
    """
    is_dev_spare = config.data.dev is None and sets.test is not None
    train = [*sets.train, *sets.dev] if is_dev_spare else sets.train
    number = {name: i for i, name in enumerate(sets.labels)}
    texts = [example.text for example in train]
    classes = np.array([number[example.stratum] for example in train], dtype=np.int64)
    makers = {TFIDF: _tfidf, MAJORITY: _majority}
    found = {}
    for name, make in makers.items():
        began = time.monotonic()
        model = make(texts, classes, len(sets.labels))
        result = _result(config, sets, train, model)
        result["seed"], result["seconds"] = config.run.seed, time.monotonic() - began
        if not is_dev_spare:
            metric = config.metric
            result["best_dev"] = _report(config, sets, sets.dev, model)[metric]
        found[name] = result
    return found


def _tfidf(texts: list[str], classes: npt.NDArray[np.int64], count: int) -> Model:
    from finetune.report.baseline import Baseline  # scikit-learn takes a second

    return Baseline(texts, classes, count).log_probabilities


def _majority(texts: list[str], classes: npt.NDArray[np.int64], count: int) -> Model:
    frequencies = np.bincount(classes, minlength=count) / len(classes)
    row = np.log(np.maximum(frequencies, np.finfo(np.float32).tiny)).astype(np.float32)
    return lambda given: np.tile(row, (len(given), 1))


def _result(config: FinetuneConfig, sets: Sets, train: list[Any], model: Model) -> Result:
    split, examples = ("test", sets.test) if sets.test is not None else ("dev", sets.dev)
    seen = seen_in(examples, train)
    report = {
        "split": split,
        "examples": len(examples),
        "seen_in_train": sum(seen),
        **_report(config, sets, examples, model),
    }
    if any(seen) and not all(seen):
        for side, is_wanted in (("seen", True), ("unseen", False)):
            part = [e for e, is_seen in zip(examples, seen, strict=True) if is_seen is is_wanted]
            report[side] = _report(config, sets, part, model)
    return of_report(report, config)


def _report(config: FinetuneConfig, sets: Sets, examples: list[Any], model: Model) -> Any:
    """All scores, counted by the task itself as those of a model are."""
    number = {name: i for i, name in enumerate(sets.labels)}
    count = len(examples)
    data = Encoded(
        examples,
        tokens=np.zeros(count, np.int32),
        starts=np.arange(count + 1),
        labels=np.array([number[example.stratum] for example in examples], dtype=np.int64),
        truncated=0,
    )
    outputs = list(model([example.text for example in examples]))
    return task_of(config.task).report(data, outputs, sets.labels)
