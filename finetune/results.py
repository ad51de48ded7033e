"""The end of a run: the best model's predictions and scores on the test set."""

import hashlib
from pathlib import Path
from typing import Any

import orjson

from finetune.checkpoint import best_score
from finetune.evaluate import outputs
from finetune.models import open_model
from finetune.report.run_command import write_report
from finetune.session import Session
from finetune.tasks.base import Encoded, Outputs, seen_in
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
    return (run_dir / "predictions.jsonl").is_file() and report.get("data") == _fingerprint(data)


def _fingerprint(data: Encoded) -> str:
    """Hash a set with all that it is scored by: several right answers, what was cut."""
    digest = hashlib.sha256(data.fingerprint().encode())
    for example in data.examples:
        digest.update(repr(example).encode(errors="surrogatepass"))
    return digest.hexdigest()


def _scored(session: Session) -> tuple[str, Encoded]:
    """The name and the texts of the set that the final scores are of."""
    sets = session.sets
    split, examples = ("test", sets.test) if sets.test is not None else ("dev", sets.dev)
    return split, session.task.encode(examples, sets.labels, session.tokenizer)


def write_results(session: Session) -> None:
    """Score the best model on test (else dev): predictions.jsonl, reports, a table. Collective.

    The model is read back from its directory, so the scores are those of the files.
    """
    ranks, tokenizer, labels = session.ranks, session.tokenizer, session.sets.labels
    split, data = _scored(session)
    try:
        net = open_model(session.best).net.to(ranks.device)
    except UserError as error:
        raise UserError(f"the best model can't be read back: {error}") from error
    batch_size = session.config.micro_batch_size(ranks.world_size)
    found = outputs(
        net, session.task, data, ranks, batch_size, pad_id=tokenizer.pad_id, beat=session.beat
    )
    seen = seen_in(data.examples, session.sets.train)
    report = {
        "task": session.config.task.kind,
        "split": split,
        "examples": len(data.examples),
        "data": _fingerprint(data),
        "truncated": data.truncated,
        "seen_in_train": sum(seen),
        **session.task.report(data, found, labels),
        "transfer": session.decision.as_json(),
        "model": str(session.best),
        "best": best_score(session.best),
    }
    if any(seen) and not all(seen):
        report["seen"], report["unseen"] = _by_leak(session, data, found, seen)
    dist.together(lambda: _write(session, data, found, report), only_main=True)
    say = session.progress.say
    say(f"\n{split} set, by the best model (step {report['best']['step']}):\n")
    say(session.task.report_text(data, found, labels))
    if report["seen_in_train"]:
        say(f"warning: {report['seen_in_train']} of these texts are in the training set too")
    if data.truncated:
        say(f"warning: {data.truncated} of these texts were cut at {tokenizer.max_length} tokens")
    say(f"best model {session.best}; scores {session.config.run_dir / 'report.html'}")


def _by_leak(
    session: Session, data: Encoded, found: Outputs, seen: list[bool]
) -> tuple[dict[str, float], ...]:
    """The scores of the examples that are in the training set too, and of the others."""
    task, labels = session.task, session.sets.labels
    owners, parts = task.owners(data).tolist(), []
    for side in (True, False):
        examples = [e for e, is_seen in zip(data.examples, seen, strict=True) if is_seen is side]
        part = task.encode(examples, labels, session.tokenizer)
        outputs = [o for o, owner in zip(found, owners, strict=True) if seen[owner] is side]
        parts.append(task.scores(part, outputs, labels))
    return tuple(parts)


def _write(session: Session, data: Encoded, found: Outputs, report: dict[str, Any]) -> None:
    run_dir = session.config.run_dir
    rows = session.task.predictions(data, found, session.sets.labels)
    lines = [orjson.dumps({"index": i, **row}) + b"\n" for i, row in enumerate(rows)]
    _replace(run_dir / "predictions.jsonl", b"".join(lines))
    _replace(run_dir / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))
    write_report(run_dir, [example.text for example in data.examples])


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    fsync_path(temporary)
    temporary.replace(path)
