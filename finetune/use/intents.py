"""`python -m finetune intents`: when is a question none that the classifier was made for?

The score of a question is the probability of its likeliest class (Hendrycks and Gimpel 2017). Below
a threshold, chosen on labelled questions out of scope, `predict --intents` says `out_of_scope` and
which known questions are most like it.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch

from finetune import metrics
from finetune.config import BEST, FinetuneConfig, model_directory
from finetune.models import Opened, open_model
from finetune.use import scoring
from finetune.use.retrieval import Retrieval
from runtime.config import load
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

FILE, QUESTIONS = "intents.json", "intents.jsonl"
OUT_OF_SCOPE = "out_of_scope"

Scores = npt.NDArray[np.float64]


def main(arguments: list[str]) -> int:
    """Choose the threshold, score it, and write it beside the model."""
    options = _parse(arguments)
    directory = model_directory(options.directory)
    opened = open_model(directory)
    if opened.task.kind != "classification":
        raise UserError(
            f"{options.directory}: task {opened.task.kind}; intents are classes of texts",
            status=EXIT_BAD_INPUT,
        )
    known = _scores(opened, options.dev)
    unknown = _scores(opened, options.oos_dev)
    threshold = choose(known, unknown)
    content: dict[str, Any] = {"threshold": threshold, "dev": separation(known, unknown, threshold)}
    if options.test and options.oos_test:
        test = _scores(opened, options.test), _scores(opened, options.oos_test)
        content["test"] = separation(*test, threshold)
    count = _write_questions(opened, options.questions or _train_file(options), directory)
    (directory / FILE).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    print(f"threshold {threshold:.4f}; {count:,} known questions; written to {directory / FILE}")
    for name in ("dev", "test"):
        if name in content:
            told = "  ".join(f"{key} {value:.4f}" for key, value in content[name].items())
            print(f"{name:>5}: {told}")
    return EXIT_OK


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune intents",
        description="Choose from which probability on a question counts as one of the classes.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="model directory, or a run")
    parser.add_argument("--dev", type=Path, required=True, help="labelled questions in scope")
    parser.add_argument("--oos-dev", type=Path, required=True, help="questions out of scope")
    parser.add_argument("--test", type=Path, help="as --dev, for the scores")
    parser.add_argument("--oos-test", type=Path, help="as --oos-dev, for the scores")
    parser.add_argument(
        "--questions", type=Path, help="known questions with their answers; default: data.train"
    )
    return parser.parse_args(arguments)


def _train_file(options: argparse.Namespace) -> Path:
    config = run_config(options.directory)
    if config is None:
        raise UserError(
            f"{options.directory}: is no run; give --questions FILE", status=EXIT_BAD_INPUT
        )
    return Path(config.data.train)


def run_config(directory: Path) -> FinetuneConfig | None:
    """The config of the run that a directory is, or is the best model of."""
    run = directory.parent if directory.name == BEST else directory
    path = run / "config.yaml"
    return load(FinetuneConfig, path) if path.is_file() else None


def _scores(opened: Opened, path: Path) -> Scores:
    """The probability of the likeliest class of each text; labels are not needed."""
    examples = []
    for found in opened.task.stream(path, labelled=False):
        if hasattr(found, "stratum"):
            examples.append(found)
        else:
            raise UserError(f"{path}:{found.line}: {found.text}", status=EXIT_BAD_INPUT)
    data = opened.task.encode(examples, opened.labels, opened.tokenizer)
    rows = scoring.run(opened.net.eval(), opened, data, torch.device("cpu"))
    # Rounded as `predict` does, which compares them with the threshold.
    best: Scores = np.exp(np.stack(rows).max(-1).astype(np.float64)).round(6)
    return best


def choose(known: Scores, unknown: Scores) -> float:
    """The threshold at which the shares of both kinds that are told right add up to the most.

    known, unknown: scores of questions in and out of scope. That is Youden's J (1950): neither kind
    counts for more because there are more of it.
    """
    candidates = np.unique(np.concatenate([known, unknown]))
    right = [(known >= t).mean() + (unknown < t).mean() for t in candidates]
    return float(candidates[int(np.argmax(right))])


def separation(known: Scores, unknown: Scores, threshold: float) -> dict[str, float]:
    """How well the scores keep both kinds apart.

    auroc: the chance that one in scope scores above one out of scope. fpr95: the share out of scope
    that is taken for known where 95 % of the known are. in_scope_kept, out_of_scope_found: at the
    threshold.
    """
    at_95 = np.quantile(known, 0.05)
    return {
        "auroc": metrics.auroc(known, unknown),
        "fpr95": float((unknown >= at_95).mean()),
        "in_scope_kept": float((known >= threshold).mean()),
        "out_of_scope_found": float((unknown < threshold).mean()),
    }


def _write_questions(opened: Opened, path: Path, directory: Path) -> int:
    examples, problems = opened.task.read(path)
    if problems:
        raise UserError("; ".join(problems), status=EXIT_BAD_INPUT)
    lines = [orjson.dumps({"text": e.text, "label": e.stratum}) + b"\n" for e in examples]
    (directory / QUESTIONS).write_bytes(b"".join(lines))
    return len(lines)


class Intents:
    """Tells a question out of scope, and what is known that is like it."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        path = directory / FILE
        try:
            self.threshold = float(orjson.loads(path.read_bytes())["threshold"])
            rows = (directory / QUESTIONS).read_bytes().splitlines()
            self._questions = [orjson.loads(row) for row in rows]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: {error}; make it with `python -m finetune intents`",
                status=EXIT_BAD_INPUT,
            ) from error
        self._retrieval = Retrieval([str(row["text"]) for row in self._questions])
        self._count = count

    def amend(self, text: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Add `intent`, and `nearest`: known questions, where this one is out of scope."""
        if answer["probability"] >= self.threshold:
            return {"intent": answer["predicted"], "nearest": [], **answer}
        return {"intent": OUT_OF_SCOPE, "nearest": list(self._nearest(text)), **answer}

    def _nearest(self, text: str) -> Iterator[dict[str, Any]]:
        for number, similarity in self._retrieval.nearest(text, self._count):
            yield {**self._questions[number], "similarity": round(similarity, 4)}
