"""`python -m finetune evaluate`: a model's scores on labelled data, without training."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from finetune.config import model_directory
from finetune.evaluate import outputs
from finetune.models import Opened, open_model
from finetune.tasks import task_of
from finetune.tasks.base import Encoded, Outputs
from finetune.tasks.config import TaskKeys
from finetune.transfer.zero_shot import Prompt, open_zero_shot
from runtime.config import ConfigError, flat, read_value
from runtime.dist import Ranks, resolve_device
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError


class Scored(NamedTuple):
    """What a model says of a labelled file."""

    data: Encoded
    outputs: Outputs
    report: dict[str, Any]
    text: str  # the scores, for people


def main(arguments: list[str]) -> int:
    """Score the model in DIR on FILE; exit status as of every command."""
    options, overrides = _parse(arguments)
    if options.prompt is not None:
        opened = _zero_shot(options, overrides)
    else:
        opened = open_model(directory_of(options.directory))
        opened = opened._replace(task=task_of(changed_keys(opened.task.keys, overrides)))
    found = score(opened, options.data, options.device, options.batch_size)
    print(found.text)
    if found.data.truncated:
        print(f"warning: {found.data.truncated} of these texts were cut at "
              f"{opened.tokenizer.max_length} tokens")  # fmt: skip
    if options.output is not None:
        said = {"model": str(options.directory), **found.report}
        write(options.output, found, opened, said)
    return EXIT_OK


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m finetune evaluate",
        description="Score a model on a labelled file, without training it: a fine-tuned one by "
        "its head, or with --prompt any language model that has never seen the task.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="model directory, or a run")
    parser.add_argument("data", type=Path, metavar="FILE", help="labelled examples")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="task.text_key=…, and so on")
    parser.add_argument("--output", type=Path, metavar="OUT", help="for report and predictions")
    parser.add_argument(
        "--prompt",
        help="zero-shot: the text as {text}, the answer as {label}: '{text} It is {label}.'",
    )
    parser.add_argument(
        "--words",
        help="zero-shot: what stands for the classes: 'pos=great,neg=bad'; default: their names",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="zero-shot: count how much likelier an answer becomes by the text (Zhao et al. 2021)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="items per forward pass (32)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch-size: {options.batch_size} is less than 1")
    if options.prompt is None and (options.words or options.calibrate):
        parser.error("--words and --calibrate need --prompt")
    return options, options.keys


def directory_of(path: Path) -> Path:
    """Find the model that a path stands for. Raises UserError, status 2."""
    try:
        return model_directory(path)
    except UserError as error:
        raise UserError(str(error), status=EXIT_BAD_INPUT) from error


def changed_keys(keys: TaskKeys, overrides: Sequence[str]) -> TaskKeys:
    """Apply `task.key=value` to the keys that a model was trained with. Raises ConfigError."""
    known = flat(keys.model_dump(mode="json"))
    changes = {}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        name = dotted.removeprefix("task.")
        if not equals or name not in known:
            raise ConfigError([
                f"command line: {override!r}: expected task.key=value, key one of "
                f"{', '.join(known)}"
            ])  # fmt: skip
        changes[name] = read_value(text, dotted)
    return TaskKeys.model_validate({**known, **changes})


def score(opened: Opened, path: Path, device: str, batch_size: int) -> Scored:
    """Score a model on a labelled file.

    Raises UserError, status 2, for a file that can't be read or isn't of the model's classes.
    """
    net, task, labels, tokenizer = opened
    if not path.is_file():
        raise UserError(f"{path}: no such file", status=EXIT_BAD_INPUT)
    examples, problems = task.read(path)
    problems = problems or [f"{path}: {text}" for text in task.check("test", examples, labels)]
    if problems:
        raise UserError("\n       ".join(problems), status=EXIT_BAD_INPUT)
    data = task.encode(examples, labels, tokenizer)
    ranks = Ranks(0, 0, 1, resolve_device(device))
    net = net.to(ranks.device).eval()
    found = outputs(net, task, data, ranks, batch_size, pad_id=tokenizer.pad_id)
    report = {
        "task": task.keys.kind,
        "data": str(path),
        "examples": len(examples),
        "truncated": data.truncated,
        **task.report(data, found, labels),
    }
    return Scored(data, found, report, task.report_text(data, found, labels))


def write(directory: Path, found: Scored, opened: Opened, report: dict[str, Any]) -> None:
    """Write predictions.jsonl and report.json into a directory. Raises UserError."""
    rows = opened.task.predictions(found.data, found.outputs, opened.labels)
    lines = [orjson.dumps({"index": i, **row}) + b"\n" for i, row in enumerate(rows)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "predictions.jsonl").write_bytes(b"".join(lines))
        (directory / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror}") from error


def _zero_shot(options: argparse.Namespace, overrides: Sequence[str]) -> Opened:
    task = task_of(changed_keys(TaskKeys(), overrides))
    examples, problems = task.read(options.data)
    if problems:
        raise UserError("\n       ".join(problems), status=EXIT_BAD_INPUT)
    labels = task.label_names(examples)
    prompt = Prompt.parse(options.prompt, options.words, labels)
    directory = directory_of(options.directory)
    return open_zero_shot(directory, task.keys, prompt, labels, calibrates=options.calibrate)
