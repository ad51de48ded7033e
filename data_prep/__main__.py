"""`python -m data_prep run|inspect|verify|demo`: prepare text, look at the result, check it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_OK,
    EXIT_PREEMPTED,
    UserError,
    command,
)

USAGE = """
python -m data_prep run CONFIG.yaml [key.subkey=value ...]   text → tokenizer and shards
python -m data_prep inspect DIR                              counts, and some documents
python -m data_prep verify DIR                               check every byte; exit 1 if damaged
python -m data_prep demo [DIR]                               built-in text → DIR/data, and
                                                             DIR/functions.{train,dev,test}.jsonl
"""
_SAMPLES, _SAMPLE_TOKENS = 3, 60


@command
def main(arguments: Sequence[str]) -> int:
    """Run one subcommand; returns the exit status."""
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        from data_prep.config import DataPrepConfig
        from runtime.config import print_help

        print_help(USAGE, DataPrepConfig)
        return EXIT_OK
    try:
        return _dispatch(*arguments)
    except KeyboardInterrupt as error:
        raise UserError(
            "interrupted; finished work is kept, run the same command again to go on",
            status=EXIT_PREEMPTED,
        ) from error


def _dispatch(name: str, *arguments: str) -> int:
    rest = list(arguments)
    if name == "run":
        config = Path(rest.pop(0)) if rest and "=" not in rest[0] else None
        return _run(config, rest)
    commands = {"inspect": _inspect, "verify": _verify, "demo": _demo}
    if name not in commands:
        raise UserError(
            f"unknown command {name!r}; write run, {', '.join(commands)} or --help",
            status=EXIT_BAD_INPUT,
        )
    if name == "demo" and not rest:
        rest = ["runs/demo"]
    if len(rest) != 1:
        raise UserError(f"expected: python -m data_prep {name} DIR", status=EXIT_BAD_INPUT)
    return commands[name](Path(rest[0]))


def _run(path: Path | None, overrides: Sequence[str]) -> int:
    from data_prep.config import DataPrepConfig, check
    from data_prep.pipeline import prepare
    from runtime.config import load

    prepare(load(DataPrepConfig, path, overrides, check))
    return EXIT_OK


def _demo(directory: Path) -> int:
    from data_prep.demo import prepare_demo

    prepare_demo(directory)
    return EXIT_OK


def _verify(directory: Path) -> int:
    from data_prep.verify import verify_directory

    problems = verify_directory(directory)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"sound: {directory}")
    return EXIT_FAILED if problems else EXIT_OK


def _inspect(directory: Path) -> int:
    from data_prep import manifest
    from data_prep.shards import Shards
    from data_prep.tokenizer import DocumentTokenizer

    shards = {}
    listed = manifest.load(directory)
    print(f"{directory}: {listed.documents:,} documents, {listed.tokens:,} tokens, {listed.dtype}")
    print(f"  fingerprint {listed.fingerprint}")
    own = listed.tokenizer
    print(f"  tokenizer {own.vocab_size:,} entries, documents end with {own.eod} ({own.eod_id})")
    for split, counts in sorted(listed.splits.items()):
        ratio = counts.text_bytes / max(counts.tokens, 1)
        print(
            f"  {split}: {counts.documents:,} documents, {counts.tokens:,} tokens, "
            f"{ratio:.2f} bytes/token, {counts.unknown_tokens:,} unknown tokens"
        )
        shards[split] = Shards(directory, split)
    for reason, count in sorted(listed.dropped.items()):
        print(f"  dropped, {reason}: {count:,}")
    tokenizer = DocumentTokenizer(directory, own.eod)
    for split, data in shards.items():
        for number in sorted({len(data) * k // _SAMPLES for k in range(_SAMPLES)}):
            text = tokenizer.decode(data[number][:_SAMPLE_TOKENS])
            print(f"  {split}[{number}]: {text!r}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
