"""`python -m finetune monitor`: do new texts, and what the model says of them, look like the old?

Old and new texts are put together and split at random into two sets of the same sizes: what a
measure of those two says, chance alone gives (a permutation test; Fisher 1935). A measure has
drifted when it is beyond all but one in a hundred of such splits and beyond a size that matters in
practice.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import torch

from finetune.config import model_directory, read_sets
from finetune.models import Opened, open_model
from finetune.tasks.base import Encoded, Problem
from finetune.use import scoring
from finetune.use.intents import run_config
from runtime.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, UserError

_DRAWS = 400
_QUANTILE = 0.99
_SEED = 0
_COLUMNS = 2048  # that tokens are counted in
# Sizes that matter. PSI of 0.2: the usual bound of credit scoring (Siddiqi 2006).
_PRACTICAL = {"classes_psi": 0.2, "confidence": 0.05, "tokens_js": 0.02, "length": 0.2}

Array = npt.NDArray[np.float64]


class Observed(NamedTuple):
    """What is compared of a set of texts; one row a text."""

    classes: Array  # (N, classes): 1 at the predicted one
    confidence: Array  # (N,): probability of the predicted class
    tokens: Array  # (N, columns) counts

    def summary(self, weights: Array) -> "Summary":
        """Of the texts, each as often as its weight (N,) says."""
        n = weights.sum()
        tokens = weights @ self.tokens
        classes = weights @ self.classes
        return Summary(classes, float(weights @ self.confidence / n), tokens, tokens.sum() / n)


class Summary(NamedTuple):
    """A set of texts in sums."""

    classes: Array  # texts of each predicted class, (classes,)
    confidence: float
    tokens: Array  # (columns,)
    length: float  # tokens of a text


def main(arguments: list[str]) -> int:
    """Compare; exit status 1 where something drifted."""
    options = _parse(arguments)
    opened = open_model(model_directory(options.directory))
    if opened.task.kind != "classification":
        raise UserError(
            f"{options.directory}: task {opened.task.kind}; classes are what is monitored",
            status=EXIT_BAD_INPUT,
        )
    reference = _observe(opened, _reference(opened, options))
    new = _observe(opened, _drawn(opened, options.input, options.limit))
    found = drift(reference, new)
    report = {"texts": len(new.confidence), "reference_texts": len(reference.confidence), **found}
    print(_table(found))
    if options.json:
        options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    names = [name for name, row in found.items() if row["drifted"]]
    if names:
        print(f"drifted: {', '.join(names)}; look at the new texts, label some, and train on them")
        return EXIT_FAILED
    print("no drift")
    return EXIT_OK


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune monitor",
        description="Compare new texts, and what a classifier says of them, with those that it "
        "was made for. Exit status 1: something drifted.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="model directory, or a run")
    parser.add_argument("input", type=Path, metavar="NEW", help="file of new texts")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE", help="texts as they were; default: dev of the run"
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=int, default=5000, metavar="N", help="texts looked at of each file (5000)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measures there")
    options = parser.parse_args(arguments)
    if options.limit < 1:
        parser.error(f"--limit: {options.limit} is less than 1")
    return options


def _reference(opened: Opened, options: argparse.Namespace) -> list[Any]:
    """The texts as they were: of the file that is given, else the run's own dev set."""
    if options.reference is not None:
        return _drawn(opened, options.reference, options.limit)
    config = run_config(options.directory)
    if config is None:
        raise UserError(
            f"{options.directory}: is no run; give --reference FILE", status=EXIT_BAD_INPUT
        )
    sets, problems = read_sets(config)
    if problems:
        raise UserError(f"{problems[0].key}: {problems[0].message}", status=EXIT_BAD_INPUT)
    count = min(options.limit, len(sets.dev))
    chosen = np.random.default_rng(_SEED).choice(len(sets.dev), count, replace=False)
    return [sets.dev[int(index)] for index in chosen]


def _observe(opened: Opened, examples: list[Any]) -> Observed:
    data = opened.task.encode(examples, opened.labels, opened.tokenizer)
    rows = np.stack(scoring.run(opened.net.eval(), opened, data, torch.device("cpu")))
    confidence = np.exp(rows.max(-1).astype(np.float64))
    return Observed(np.eye(rows.shape[1])[rows.argmax(-1)], confidence, _counts(data))


def _drawn(opened: Opened, path: Path, limit: int) -> list[Any]:
    """At most so many texts of a file, every one with the same chance, in constant memory."""
    draw = np.random.default_rng(_SEED)
    kept: list[Any] = []
    for number, found in enumerate(opened.task.stream(path, labelled=False)):
        if isinstance(found, Problem):
            raise UserError(f"{path}:{found.line}: {found.text}", status=EXIT_BAD_INPUT)
        if number < limit:
            kept.append(found)
        elif (at := int(draw.integers(0, number + 1))) < limit:  # Vitter 1985, algorithm R
            kept[at] = found
    if not kept:
        raise UserError(f"{path}: holds no texts", status=EXIT_BAD_INPUT)
    return kept


def _counts(data: Encoded) -> Array:
    """Tokens of each text, by their ids modulo the columns, (N, columns)."""
    out = np.zeros((len(data), _COLUMNS))
    for number in range(len(data)):
        np.add.at(out[number], data.row(number) % _COLUMNS, 1)
    return out


def drift(reference: Observed, new: Observed) -> dict[str, dict[str, Any]]:
    """Each measure: its value, what chance gives at most, and whether it drifted."""
    draw = np.random.default_rng(_SEED)
    size, count = len(reference.confidence), len(new.confidence)
    old, latest = reference.summary(np.ones(size)), new.summary(np.ones(count))
    both = Observed(*(np.concatenate(pair) for pair in zip(reference, new, strict=True)))
    splits = []
    for _ in range(_DRAWS):
        is_new = np.zeros(size + count)
        is_new[draw.permutation(size + count)[:count]] = 1
        splits.append((both.summary(1 - is_new), both.summary(is_new)))
    found: dict[str, dict[str, Any]] = {}
    for name, measure in _MEASURES.items():
        value = float(measure(old, latest))
        chance = float(np.quantile([measure(*split) for split in splits], _QUANTILE))
        found[name] = {
            "value": value,
            "by_chance": chance,
            "bound": _PRACTICAL[name],
            "drifted": bool(value > max(chance, _PRACTICAL[name])),
        }
    return found


def classes_psi(old: Summary, new: Summary) -> float:
    """Population stability index of the predicted classes, Σ (p − q)·ln(p / q).

    Half a text is added to each class, so that an absent one gives no infinity.
    """
    p, q = old.classes + 0.5, new.classes + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def confidence(old: Summary, new: Summary) -> float:
    """How far the mean probability of the predicted class moved."""
    return abs(new.confidence - old.confidence)


def tokens_js(old: Summary, new: Summary) -> float:
    """Jensen–Shannon divergence of the tokens, in bits: 0 the same, 1 none in common."""
    p, q = old.tokens / old.tokens.sum(), new.tokens / new.tokens.sum()
    return (_divergence(p, (p + q) / 2) + _divergence(q, (p + q) / 2)) / 2


def _divergence(p: Array, q: Array) -> float:
    at = p > 0
    return float((p[at] * np.log2(p[at] / q[at])).sum())


def length(old: Summary, new: Summary) -> float:
    """By what share the mean number of tokens changed."""
    return abs(new.length - old.length) / old.length


_MEASURES: dict[str, Callable[[Summary, Summary], float]] = {
    "classes_psi": classes_psi,
    "confidence": confidence,
    "tokens_js": tokens_js,
    "length": length,
}


def _table(found: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':14}{'value':>10}{'by chance':>12}{'bound':>8}"]
    for name, row in found.items():
        mark = "  drifted" if row["drifted"] else ""
        lines.append(
            f"{name:14}{row['value']:10.4f}{row['by_chance']:12.4f}{row['bound']:8.2f}{mark}"
        )
    return "\n".join(lines)
