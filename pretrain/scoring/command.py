"""`python -m pretrain evaluate`: perplexity, bits per byte and tasks of checkpoints."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from data_prep.options import Parser
from data_prep.text_sets import TextSet
from pretrain.scoring.records import Target, targets
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

DTYPES = ("fp32", "bf16", "fp16")
_SHOWN = ("perplexity", "bits_per_byte", "nats_per_token", "word_perplexity")


def main(argv: Sequence[str]) -> int:
    """Score checkpoints, print a table, and append to RUN/scores.jsonl. Raises UserError."""
    options = _options(argv)
    sets = [TextSet(name, options.text_key, options.document) for name in options.texts]
    if not sets and not options.tasks:
        raise UserError(
            "nothing to evaluate on: name files behind the checkpoint, or --tasks",
            status=EXIT_BAD_INPUT,
        )
    records: list[dict[str, Any]] = []
    for target in targets(options.model, every_checkpoint=options.every_checkpoint):
        for record in _scores(target, sets, options):
            target.write(record)
            records.append(record)
            if not options.json:
                print(_line(record), flush=True)
    if options.json:
        sys.stdout.buffer.write(orjson.dumps(records, option=orjson.OPT_INDENT_2) + b"\n")
    return EXIT_OK


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m pretrain evaluate", description=__doc__)
    add = parser.add_argument
    add("model", type=Path, metavar="DIR", help="a model directory, a checkpoint or a run")
    add("texts", nargs="*", metavar="TEXTS", help="files, folders, globs, URLs, or DATA:valid")
    add("--every-checkpoint", action="store_true", help="of a run, not only the newest")
    add("--text-key", default="text", help="field that holds a document (default: text)")
    add(
        "--document",
        choices=("file", "paragraph", "line"),
        default="file",
        help="what a document is in plain text (default: file)",
    )
    add("--seq-len", type=int, help="tokens seen at once (default: as many as the model can)")
    add("--stride", type=int, help="new tokens a window (default: half of --seq-len)")
    add("--max-tokens", type=int, default=2000, help="masked models: hidden in all; 0 = every one")
    add("--batch-size", type=int, default=8, help="windows or examples at once (default: 8)")
    add("--tasks", type=_names, default=(), help="of the lm-evaluation-harness, by commas")
    add("--task-folder", type=Path, action="append", default=[], help="with YAML tasks of yours")
    add("--shots", type=int, help="examples before each question (default: the task's)")
    add("--limit", type=int, help="examples of each task (default: all)")
    add("--online", action="store_true", help="let tasks load data from a hub")
    add("--device", help="such as cpu or cuda:0 (default: cuda where there is one)")
    add("--dtype", choices=DTYPES, help="of the weights (default: the file's)")
    add("--again", action="store_true", help="also what RUN/scores.jsonl has already")
    add("--json", action="store_true", help="print JSON instead of lines")
    options = parser.parse_args(argv)
    for name, least in (("batch_size", 1), ("max_tokens", 0), ("shots", 0), ("limit", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            told = f"--{name.replace('_', '-')}: got {value}, expected {least} or more"
            raise UserError(told, status=EXIT_BAD_INPUT)
    return options


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _scores(
    target: Target, sets: list[TextSet], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if sets:
        yield from _of_texts(target, sets, options, device)
    if options.tasks:
        yield from _of_tasks(target, options, device)


def _of_texts(
    target: Target, sets: list[TextSet], options: argparse.Namespace, device: str
) -> Iterator[dict[str, Any]]:
    import torch

    from pretrain.scoring.perplexity import Reading, Scorer
    from runtime.engine import DTYPES as TORCH_DTYPES

    reading = Reading(options.seq_len, options.stride, options.batch_size, options.max_tokens)
    dtype = TORCH_DTYPES[options.dtype] if options.dtype else None
    scorer = Scorer(target.path, reading, torch.device(device), dtype)
    kind = "pseudo_perplexity" if scorer.is_masked else "perplexity"
    for texts in sets:
        settings = {**scorer.settings, "dtype": options.dtype, "texts": texts.fingerprint}
        if not options.again and target.is_scored(kind, texts.name, settings):
            _say(f"{target.path.name}: {texts.name} is scored already (--again scores it anew)")
            continue
        found = scorer.score(partial(_only_texts, texts))
        if texts.bad:
            _say(f"warning: {texts.name}: {texts.bad} records could not be read")
        if found.unknown or found.lossy:
            _say(
                f"warning: {texts.name}: the tokenizer loses text ({found.unknown} unknown "
                "tokens); bits per byte are too low to compare with other models'"
            )
        if not found.scored:
            raise UserError(f"{texts.name}: holds no text to score", status=EXIT_BAD_INPUT)
        yield target.record(kind, texts.name, settings, found.metrics(), found.counts())


def _only_texts(texts: TextSet) -> Iterator[str]:
    return (text for _, text in texts)


def _of_tasks(target: Target, options: argparse.Namespace, device: str) -> Iterator[dict[str, Any]]:
    from pretrain.scoring.harness import Asked, run_tasks

    settings = {"shots": options.shots, "limit": options.limit, "dtype": options.dtype}
    tasks = tuple(
        task
        for task in options.tasks
        if options.again or not target.is_scored("task", task, settings)
    )
    for task in set(options.tasks) - set(tasks):
        _say(f"{target.path.name}: {task} is scored already (--again scores it anew)")
    if not tasks:
        return
    asked = Asked(
        tasks,
        tuple(options.task_folder),
        options.shots,
        options.limit,
        options.batch_size,
        options.online,
    )
    for task, metrics in run_tasks(target.path, asked, device, options.dtype).items():
        yield target.record("task", task, settings, metrics)


def _line(record: dict[str, Any]) -> str:
    metrics = record["metrics"]
    names = [name for name in _SHOWN if name in metrics] or list(metrics)
    told = "  ".join(f"{name.replace('_', ' ')} {metrics[name]:.4f}" for name in names)
    tokens = record["counts"].get("scored_tokens")
    of = "" if tokens is None else f"  ({tokens:,} tokens)"
    return f"{record['checkpoint']}  {record['name']}  {told}{of}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
