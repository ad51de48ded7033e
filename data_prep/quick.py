"""`python -m data_prep tokenize`: the classic one-line command, without a config file."""

import argparse
from collections.abc import Sequence
from typing import Any

import orjson

from data_prep.config import DataPrepConfig, check
from data_prep.options import Parser, add_option
from data_prep.pipeline import prepare
from data_prep.tokenizer_config import tokenizer_file
from runtime.config import ConfigError, load
from runtime.errors import EXIT_OK

_FLAGS = {  # the keys that options set, and how a mistake in one is to be named
    "input.paths": "--data_dir",
    "input.format": "--format",
    "input.text_key": "--text_key",
    "input.document": "--document",
    "output": "--output_file",
    "tokenizer.path": "--vocab_file",
    "tokenizer.lowercase": "--do_lower_case",
    "tokenizer.eod": "--eod",
    "split.valid": "--valid",
    "workers": "--workers",
}


def main(arguments: Sequence[str]) -> int:
    """Tokenise files into a directory of shards; returns the exit status.

    Raises UserError for mistakes in the options, which are named by the option.
    """
    try:
        options = _parser().parse_args(list(arguments))
    except SystemExit as done:  # --help
        return int(done.code or EXIT_OK)
    prepare(read(options))
    return EXIT_OK


def read(options: argparse.Namespace) -> DataPrepConfig:
    """The config that options stand for."""
    vocabulary = tokenizer_file(options.vocab_file)
    lowercase: bool | None = options.do_lower_case
    if vocabulary is not None and vocabulary.suffix == ".txt":
        lowercase = bool(lowercase)  # as in the classic script: absent means cased
    keys: dict[str, Any] = {
        "input.paths": [path for group in options.data_dir for path in group],
        "input.format": options.format,
        "input.text_key": options.text_key,
        "input.document": options.document,
        "output": options.output_file,
        "tokenizer.path": options.vocab_file,
        "tokenizer.lowercase": lowercase,
        "tokenizer.eod": options.eod,
        "split.valid": options.valid,
        "workers": options.workers,
    }
    # JSON is YAML, whatever characters a path has.
    given = [
        f"{name}={orjson.dumps(value).decode()}"
        for name, value in keys.items()
        if value is not None
    ]
    try:
        return load(DataPrepConfig, None, given, check)
    except ConfigError as error:
        raise ConfigError([_by_flag(line) for line in error.lines]) from error


def _by_flag(line: str) -> str:
    """A mistake named by its option instead of its key."""
    _, _, rest = line.partition(": ")
    name, _, message = rest.partition(": ")
    flag = _FLAGS.get(name.partition("[")[0])
    return f"{flag}: {message}" if flag else line


def _parser() -> Parser:
    parser = Parser(
        prog="python -m data_prep tokenize",
        description="Tokenise text into shards with a tokenizer that exists. Options may be "
        "written with hyphens; python -m data_prep run has every other setting.",
        allow_abbrev=False,
    )
    add_option(
        parser,
        "--data_dir",
        nargs="+",
        action="append",
        metavar="PATH",
        required=True,
        help="files, folders or globs to read",
    )
    add_option(
        parser,
        "--vocab_file",
        metavar="PATH",
        required=True,
        help="vocab.txt, tokenizer.json, a sentencepiece .model, or a folder with one",
    )
    add_option(parser, "--output_file", metavar="DIR", required=True, help="the directory to write")
    add_option(
        parser,
        "--do_lower_case",
        action="store_true",
        default=None,
        help="vocab.txt: fold case and strip accents",
    )
    add_option(parser, "--valid", type=float, metavar="FRACTION", help="kept for validation")
    add_option(parser, "--workers", type=int, metavar="N", help="processes; none: one a core")
    add_option(parser, "--format", help="of the files; none goes by their names")
    add_option(parser, "--text_key", metavar="NAME", help="field that holds the document")
    add_option(
        parser, "--document", metavar="UNIT", help="in text files: file (default), paragraph, line"
    )
    add_option(parser, "--eod", metavar="TOKEN", help="ends a document; none: its own")
    return parser
