"""The end of a run: the best model's predictions and scores on the test set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from finetune import metrics
from finetune.checkpoint import best_score
from finetune.evaluate import LogProbabilities, log_probabilities, prediction
from finetune.session import Session
from finetune.tasks.classification import HEAD, Encoded, encode, seen_in
from model import load_pretrained
from model.hf import CheckpointError
from runtime import dist
from runtime.checkpoint.format import fsync_path
from runtime.errors import UserError


def is_reported(session: Session) -> bool:
    """Whether the scores of this very test set (else dev) are written."""
    run_dir = session.config.run_dir
    try:
        report = orjson.loads((run_dir / "report.json").read_bytes())
    except (OSError, ValueError):
        return False
    _, data = _scored(session)
    return (run_dir / "predictions.jsonl").is_file() and report.get("data") == data.fingerprint()


def _scored(session: Session) -> tuple[str, Encoded]:
    """The name and the texts of the set that the final scores are of."""
    sets = session.sets
    split, examples = ("test", sets.test) if sets.test is not None else ("dev", sets.dev)
    return split, encode(examples, sets.labels, session.tokenizer)


def write_results(session: Session) -> None:
    """Score the best model on test (else dev): predictions.jsonl, report.json, a table. Collective.

    The model is read back from its directory, so the scores are those of the files.
    """
    sets, ranks, tokenizer = session.sets, session.ranks, session.tokenizer
    split, data = _scored(session)
    examples = sets.test if sets.test is not None else sets.dev
    try:
        net = load_pretrained(session.best, head=HEAD).to(ranks.device)
    except CheckpointError as error:
        raise UserError(f"the best model can't be read back: {error}") from error
    batch_size = session.config.micro_batch_size(ranks.world_size)
    rows = log_probabilities(net, data, ranks, batch_size, tokenizer.pad_id, beat=session.beat)
    predicted = rows.argmax(-1)
    report = {
        "split": split,
        "examples": len(data),
        "data": data.fingerprint(),
        "truncated": data.truncated,
        "seen_in_train": seen_in(examples, sets.train),
        "loss": -float(rows[np.arange(len(rows)), data.labels].mean(dtype=np.float64)),
        **metrics.report(data.labels, predicted, sets.labels),
        "model": str(session.best),
        "best": best_score(session.best),
    }
    dist.together(
        lambda: _write(session.config.run_dir, data, rows, sets.labels, report), only_main=True
    )
    say = session.progress.say
    say(f"\n{split} set, by the best model (step {report['best']['step']}):\n")
    say(metrics.report_text(data.labels, predicted, sets.labels))
    if report["seen_in_train"]:
        say(f"warning: {report['seen_in_train']} of these texts are in the training set too")
    if data.truncated:
        say(f"warning: {data.truncated} of these texts were cut at {tokenizer.max_length} tokens")
    say(f"best model {session.best}; scores {session.config.run_dir / 'report.json'}")


def _write(
    run_dir: Path,
    data: Encoded,
    rows: LogProbabilities,
    names: Sequence[str],
    report: dict[str, Any],
) -> None:
    lines = []
    for index, (row, label) in enumerate(zip(rows, data.labels.tolist(), strict=True)):
        lines.append(
            orjson.dumps({"index": index, "label": names[label], **prediction(row, names)}) + b"\n"
        )
    _replace(run_dir / "predictions.jsonl", b"".join(lines))
    _replace(run_dir / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    fsync_path(temporary)
    temporary.replace(path)
