"""`python -m finetune predict`: what a model says of each example of a file, in constant memory."""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finetune.answers import Progress, Resumable, WrongLineError, write_row_of
from finetune.config import model_directory
from finetune.tasks.base import Outputs, Problem, Task
from finetune.use.typed import fields
from model.hf import CheckpointError, read_config
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

_CHUNK_BATCHES = 16  # so many batches are sorted by length together, which saves padding


def main(arguments: list[str]) -> int:
    """Predict; exit status as of every command."""
    options = _parse(arguments)
    directory = _fine_tuned(options.directory)
    if not options.input.is_file():
        raise UserError(f"{options.input}: no such file", status=EXIT_BAD_INPUT)
    if options.output and options.output.exists() and options.output.samefile(options.input):
        raise UserError(f"{options.output}: is the input; choose another", status=EXIT_BAD_INPUT)
    if options.output is None:
        stream = sys.stdout.buffer
        write = write_row_of("jsonl", stream)
        cut = _predict(options, directory, write, lambda: Progress(0, 0), lambda _: None)
        sys.stdout.flush()
    else:
        with Resumable(options.output, directory, options) as output:
            if output.progress.examples:
                print(
                    f"going on after {output.progress.examples:,} examples that are in "
                    f"{output.part}",
                    file=sys.stderr,
                )
            cut = _predict(options, directory, output.write, lambda: output.progress, output.save)
            output.finish()
    if cut:
        print(f"warning: {cut} texts were longer than the model was trained for and were cut",
              file=sys.stderr)  # fmt: skip
    return EXIT_OK


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune predict",
        description="Say of every example of a file (of the task's kind, also .gz) what the model "
        "makes of it, one row an example. The same command goes on where it was killed.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="model directory, or a run")
    parser.add_argument("input", type=Path, metavar="INPUT", help="file of examples")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=".jsonl, .csv or .tsv; default: standard output"
    )  # fmt: skip
    parser.add_argument(
        "--text-key", help="field or column with the text; default: that of training"
    )
    parser.add_argument(
        "--intents", action="store_true", help="tell questions out of scope, and what is like them"
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=32, help="texts per forward pass (32)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch-size: {options.batch_size} is less than 1")
    return options


def _fine_tuned(path: Path) -> Path:
    try:
        directory = model_directory(path)
        if (directory / "config.json").is_file():
            read_config(directory)
    except (UserError, CheckpointError) as error:
        raise UserError(str(error), status=EXIT_BAD_INPUT) from error
    return directory


def _predict(
    options: argparse.Namespace,
    directory: Path,
    write: Callable[[dict[str, Any]], None],
    begin: Callable[[], Progress],
    save: Callable[[Progress], None],
) -> int:
    """Write a row per example, in their order; returns how many were cut."""
    from finetune.batches import longest_first, pieces
    from finetune.evaluate import answers
    from finetune.models import open_model
    from runtime.dist import resolve_device

    device = resolve_device(options.device)
    net, task, labels, tokenizer = open_model(directory)
    net = net.to(device).eval()
    if options.text_key is not None:
        if task.keys.text_key not in fields(task):
            raise UserError(
                f"--text-key: task {task.kind} reads {' and '.join(fields(task))}",
                status=EXIT_BAD_INPUT,
            )
        task.keys = task.keys.model_copy(update={"text_key": options.text_key})
    amend = _amend(options, directory, task)
    done, cut = begin()
    examples = itertools.islice(_examples(task, options.input), done, None)
    while chunk := list(itertools.islice(examples, options.batch_size * _CHUNK_BATCHES)):
        data = task.encode(chunk, labels, tokenizer)
        found: Outputs = [np.empty(0)] * len(data)
        for piece in pieces(longest_first(np.arange(len(data)), data.lengths), options.batch_size):
            rows = answers(net, task, data, piece, tokenizer, device)
            for index, row in zip(piece.tolist(), rows, strict=True):
                found[index] = row
        said = task.predictions(data, found, labels)
        for index, (example, answer) in enumerate(zip(chunk, said, strict=True), start=done):
            write({"index": index, **amend(example.text, answer)})
        done, cut = done + len(chunk), cut + data.truncated
        save(Progress(done, cut))
    return cut


def _amend(
    options: argparse.Namespace, directory: Path, task: Task
) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """What is added to each answer."""
    if not options.intents:
        return lambda _, answer: answer
    if task.kind != "classification":
        raise UserError(
            f"--intents: task {task.kind}; intents are classes of texts", status=EXIT_BAD_INPUT
        )
    from finetune.use.intents import Intents

    return Intents(directory).amend


def _examples(task: Task, path: Path) -> Iterator[Any]:
    for found in task.stream(path, labelled=False):
        if isinstance(found, Problem):
            raise WrongLineError(f"{path}:{found.line}: {found.text}", status=EXIT_BAD_INPUT)
        yield found
