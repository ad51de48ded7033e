"""`python -m data_prep which RUN --step N`: the documents that a training step was made of."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from data_prep.order import Order
from data_prep.origins import origin_of
from data_prep.run_order import read_order
from data_prep.samples import Seen
from data_prep.shards import Shards
from data_prep.skipping import SkippedSteps
from data_prep.tokenizer import DocumentTokenizer
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

USAGE = "python -m data_prep which RUN --step N [--text] [--json]"
_TEXT = 80  # characters of a document
_TEXT_TOKENS = 200  # that surely make as many


def main(arguments: Sequence[str]) -> int:
    """Print what a step was made of; returns the exit status."""
    options = _parse(arguments)
    order, skipped = read_order(options.run)
    entries = documents_of(order, skipped, options.step)
    data_step = data_step_of(skipped, options.step)
    if options.text:
        _add_text(order.shards, entries)
    if options.json:
        content = {"step": options.step, "data_step": data_step, "documents": entries}
        content["sources"] = accounts(order, skipped, data_step + 1)
        print(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
        return EXIT_OK
    print(f"step {options.step:,} of {options.run} (data step {data_step:,})")
    for entry in entries:
        print(_line(entry))
    for source in accounts(order, skipped, data_step + 1):
        print(
            f"up to here {source['source']}: {source['tokens']:,} tokens, "
            f"{source['epochs']:.4f} epochs"
        )
    return EXIT_OK


def data_step_of(skipped: SkippedSteps, step: int) -> int:
    """The data step that a training step, counted from 1, took: left-out ones do not count."""
    found = step - 1
    for first, stop in skipped.windows:
        if first > found:
            break
        found += stop - first
    return found


def documents_of(order: Order, skipped: SkippedSteps, step: int) -> list[dict[str, Any]]:
    """Every document of a training step's samples, as plain JSON, in the order of the samples.

    Each entry has `sample` (global number), `source`, `split`, `document` (number in the split),
    `first` and `last`: the tokens of the document that were used, counted from 0 and both
    included, `of` (its tokens), and `file` and `line` where they are known.
    """
    entries = []
    for seen in order.documents(data_step_of(skipped, step)):
        shards = order.shards[seen.source]
        entries += [_entry(shards, seen, document) for document in seen.documents]
    return entries


def _entry(shards: Shards, seen: Seen, document: int) -> dict[str, Any]:
    whole = shards.token_range(document)
    origin = origin_of(shards, document)
    return {
        "sample": seen.sample,
        "source": str(shards.directory),
        "split": shards.split,
        "document": document,
        "first": max(seen.tokens.start, whole.start) - whole.start,
        "last": min(seen.tokens.stop, whole.stop) - 1 - whole.start,
        "of": len(whole),
        **({} if origin is None else {"file": origin.path, "line": origin.line}),
    }


def accounts(order: Order, skipped: SkippedSteps, data_step: int) -> list[dict[str, Any]]:
    """Tokens that each source gave before a data step, and how often it was passed through."""
    tokens, epochs = order.tokens(data_step, skipped.windows), order.epochs(data_step)
    return [
        {"source": str(shards.directory), "tokens": count, "epochs": passed}
        for shards, count, passed in zip(order.shards, tokens, epochs, strict=True)
    ]


def _add_text(shards: Sequence[Shards], entries: list[dict[str, Any]]) -> None:
    by_name = {str(one.directory): one for one in shards}
    tokenizer = DocumentTokenizer(shards[0].directory, shards[0].manifest.tokenizer.eod)
    for entry in entries:
        tokens = by_name[entry["source"]][entry["document"]]
        used = tokens[entry["first"] : min(entry["last"] + 1, entry["first"] + _TEXT_TOKENS)]
        entry["text"] = tokenizer.decode(used)[:_TEXT]


def _line(entry: dict[str, Any]) -> str:
    told = (
        f"  sample {entry['sample']}: {entry['source']} {entry['split']}[{entry['document']}], "
        f"tokens {entry['first']} to {entry['last']} of {entry['of']}"
    )
    if "file" in entry:
        told += f", from {entry['file']}" + (f":{entry['line']}" if "line" in entry else "")
    return told + (f": {entry['text']!r}" if "text" in entry else "")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; expected: {USAGE}", status=EXIT_BAD_INPUT)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m data_prep which", description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a pretraining run")
    parser.add_argument("--step", type=int, required=True, help="training step, from 1")
    parser.add_argument("--text", action="store_true", help="the first characters of each")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    if options.step < 1:
        raise UserError(f"--step is {options.step}, expected 1 or more", status=EXIT_BAD_INPUT)
    return options
