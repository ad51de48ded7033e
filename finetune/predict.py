"""`python -m finetune predict`: classify a file of texts in constant memory."""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from finetune.config import model_directory
from finetune.tasks.base import Outputs, Problem, Task
from model.hf import CheckpointError, read_config
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

_CHUNK_BATCHES = 16  # so many batches are sorted by length together, which saves padding


def main(arguments: list[str]) -> int:
    """Classify INPUT with the model in DIR; exit status as of every command."""
    options = _parse(arguments)
    directory = _classifier(options.directory)
    if not options.input.is_file():
        raise UserError(f"{options.input}: no such file", status=EXIT_BAD_INPUT)
    if options.output and options.output.exists() and options.output.samefile(options.input):
        raise UserError(f"{options.output}: is the input; choose another", status=EXIT_BAD_INPUT)
    if options.output is None:
        cut = _predict(options, directory, sys.stdout.buffer)
        sys.stdout.flush()
    else:
        temporary = options.output.with_name(f".{options.output.name}.tmp")
        try:
            with temporary.open("wb") as stream:
                cut = _predict(options, directory, stream)
            temporary.replace(options.output)
        except OSError as error:
            raise UserError(f"{options.output}: cannot be written: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
    if cut:
        print(f"warning: {cut} texts were longer than the model was trained for and were cut",
              file=sys.stderr)  # fmt: skip
    return EXIT_OK


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune predict",
        description="Classify every text of a .jsonl, .csv or .tsv file (also .gz); "
        "writes one JSON object per text.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="model directory, or a run")
    parser.add_argument("input", type=Path, metavar="INPUT", help="file of texts")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument(
        "--text-key", help="field or column with the text; default: that of training"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="texts per forward pass (32)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch-size: {options.batch_size} is less than 1")
    return options


def _classifier(path: Path) -> Path:
    try:
        directory = model_directory(path)
        read_config(directory)
    except (UserError, CheckpointError) as error:
        raise UserError(str(error), status=EXIT_BAD_INPUT) from error
    return directory


def _predict(options: argparse.Namespace, directory: Path, output: BinaryIO) -> int:
    """Write a line per example, in their order; returns how many were cut."""
    from finetune.batches import longest_first, pieces
    from finetune.evaluate import infer
    from finetune.models import open_model
    from runtime.dist import resolve_device

    device = resolve_device(options.device)
    net, task, labels, tokenizer = open_model(directory)
    net = net.to(device).eval()
    cut = done = 0
    if options.text_key is not None:
        task.keys = task.keys.model_copy(update={"text_key": options.text_key})
    for examples in _chunks(task, options.input, options.batch_size * _CHUNK_BATCHES):
        data = task.encode(examples, labels, tokenizer)
        found: Outputs = [np.empty(0)] * len(data)
        for piece in pieces(longest_first(np.arange(len(data)), data.lengths), options.batch_size):
            rows = infer(net, task, data, piece, device, tokenizer.pad_id)
            for index, row in zip(piece.tolist(), rows, strict=True):
                found[index] = row
        for index, answer in enumerate(task.predictions(data, found, labels), start=done):
            output.write(orjson.dumps({"index": index, **answer}) + b"\n")
        cut, done = cut + data.truncated, done + len(examples)
    return cut


def _chunks(task: Task, path: Path, size: int) -> Iterator[list[Any]]:
    examples = _examples(task, path)
    while chunk := list(itertools.islice(examples, size)):
        yield chunk


def _examples(task: Task, path: Path) -> Iterator[Any]:
    for found in task.stream(path, labelled=False):
        if isinstance(found, Problem):
            raise UserError(f"{path}:{found.line}: {found.text}")
        yield found
