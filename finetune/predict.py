"""`python -m finetune predict`: classify a file of texts in constant memory."""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from finetune.config import class_names, model_directory
from finetune.readers import read_records
from finetune.tasks.classification import HEAD, pad, text_problem
from finetune.tokenizer import TextTokenizer
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
    parser.add_argument("--text-key", default="text", help="field or column with the text")
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
    """Write a line per text, in their order; returns how many texts were cut."""
    import numpy as np

    from finetune.batches import longest_first, pieces
    from finetune.evaluate import classify, prediction
    from model import load_pretrained
    from runtime.dist import resolve_device

    device = resolve_device(options.device)
    try:
        net = load_pretrained(directory, head=HEAD).to(device)
    except CheckpointError as error:
        raise UserError(str(error), status=EXIT_BAD_INPUT) from error
    if net.newly_initialised:
        raise UserError(
            f"{directory}: has no classifying head; predict needs a fine-tuned model",
            status=EXIT_BAD_INPUT,
        )
    tokenizer = TextTokenizer(directory, net.config)
    by_number = class_names(net.config)
    names = [by_number[i] for i in range(len(by_number))]
    cut = done = 0
    for texts in _chunks(options.input, options.text_key, options.batch_size * _CHUNK_BATCHES):
        encoded, newly_cut = tokenizer.encode(texts)
        lengths = np.array([len(ids) for ids in encoded])
        rows = np.empty((len(texts), len(names)), dtype=np.float32)
        for piece in pieces(longest_first(np.arange(len(texts)), lengths), options.batch_size):
            batch = pad([encoded[i] for i in piece], tokenizer.pad_id)
            rows[piece] = classify(net, batch, device)
        for index, row in enumerate(rows, start=done):
            output.write(orjson.dumps({"index": index, **prediction(row, names)}) + b"\n")
        cut, done = cut + newly_cut, done + len(texts)
    return cut


def _chunks(path: Path, text_key: str, size: int) -> Iterator[list[str]]:
    texts = _texts(path, text_key)
    while chunk := list(itertools.islice(texts, size)):
        yield chunk


def _texts(path: Path, text_key: str) -> Iterator[str]:
    for record in read_records(path, (text_key,)):
        text = record.values.get(text_key)
        problem = record.problem or text_problem(text, text_key)
        if problem is not None:
            raise UserError(f"{path}:{record.line}: {problem}")
        yield str(text)
