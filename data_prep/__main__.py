"""`python -m data_prep run|inspect|verify|demo`: prepare text, look at the result, check it."""

import sys
from collections.abc import Callable, Sequence
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
python -m data_prep run CONFIG.yaml [key.subkey=value ...]  text → tokenizer and shards; again: goes
                                                            on, or adds new inputs
python -m data_prep tokenize --data_dir D --vocab_file F    the same in short, with a vocabulary
    [--do_lower_case] --output_file DIR                     that exists
python -m data_prep inspect DIR [--html FILE | --json]      the data card: sources, lengths,
                                                            languages, what was left out and why
python -m data_prep verify DIR                              check every byte; exit 1 if damaged
python -m data_prep which RUN --step N                      the documents of a training step
python -m data_prep leakage TRAIN TEST                      texts of TEST that are also in TRAIN
python -m data_prep import PREFIX... --output DIR           foreign .bin/.idx files → a prepared
    --tokenizer PATH [--dialect megatron|neox|deepspeed]    directory
python -m data_prep task DIR STAGE NUMBER...                some tasks of a run that goes on, for
                                                            schedulers of your own
python -m data_prep demo [DIR]                              built-in text → DIR/data, and
                                                            DIR/functions.{train,dev,test}.jsonl
"""


@command
def main(arguments: Sequence[str]) -> int:
    """Run one subcommand; returns the exit status."""
    if not arguments or arguments[0] in (*_HELP, "help"):
        return _help()
    try:
        return _dispatch(*arguments)
    except SystemExit as done:  # --help of a subcommand
        return int(done.code or EXIT_OK)
    except KeyboardInterrupt as error:
        raise UserError(
            "interrupted; finished work is kept, run the same command again to go on",
            status=EXIT_PREEMPTED,
        ) from error


def _dispatch(name: str, *arguments: str) -> int:
    if name not in _COMMANDS:
        raise UserError(
            f"unknown command {name!r}; write {', '.join(_COMMANDS)} or --help",
            status=EXIT_BAD_INPUT,
        )
    if name in _PLAIN and set(arguments) & _HELP:
        print(f"usage: python -m data_prep {_PLAIN[name]}")
        return EXIT_OK
    return _COMMANDS[name](list(arguments))


def _help() -> int:
    from data_prep.config import DataPrepConfig
    from runtime.config import print_help

    print_help(USAGE, DataPrepConfig)
    _print_rules()
    return EXIT_OK


def _run(rest: list[str]) -> int:
    from data_prep.config import DataPrepConfig, check
    from data_prep.pipeline import prepare
    from runtime.config import load

    if set(rest) & _HELP:
        return _help()  # its keys are most of that page
    path = Path(rest.pop(0)) if rest and _is_path(rest[0]) else None
    prepare(load(DataPrepConfig, path, rest, check))
    return EXIT_OK


def _is_path(argument: str) -> bool:
    """Whether it names a config rather than a key and its value; folders may be named `lr=3`."""
    if "=" not in argument or argument.endswith((".yaml", ".yml")):
        return True
    try:
        return Path(argument).is_file()
    except OSError:  # longer than a path may be
        return False


def _task(rest: list[str]) -> int:
    if len(rest) < 3 or not all(number.isdigit() for number in rest[2:]):
        raise _expected("task")
    from data_prep.pipeline import run_tasks

    run_tasks(Path(rest[0]), rest[1], [int(number) for number in rest[2:]])
    return EXIT_OK


def _demo(rest: list[str]) -> int:
    from data_prep.demo import prepare_demo

    if len(rest) > 1:
        raise _expected("demo")
    prepare_demo(Path(rest[0] if rest else "runs/demo"))
    return EXIT_OK


def _verify(rest: list[str]) -> int:
    from data_prep.verify import verify_directory

    if len(rest) != 1:
        raise _expected("verify")
    problems = verify_directory(Path(rest[0]))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"sound: {rest[0]}")
    return EXIT_FAILED if problems else EXIT_OK


def _inspect(rest: list[str]) -> int:
    from data_prep.atomic import write_atomic
    from data_prep.card import make_card
    from data_prep.card_page import card_page
    from data_prep.card_text import card_lines

    if len(rest) != 1 and rest[1:] != ["--json"] and not (len(rest) == 3 and rest[1] == "--html"):
        raise _expected("inspect")
    card = make_card(Path(rest[0]))
    if len(rest) == 1:
        print("\n".join(card_lines(card)))
    elif len(rest) == 2:
        print(card.model_dump_json(indent=2))
    else:
        try:
            write_atomic(Path(rest[2]), card_page(card).encode())
        except OSError as error:
            raise UserError(f"{rest[2]}: cannot be written: {error.strerror}") from error
        print(f"wrote {rest[2]}")
    return EXIT_OK


def _import(rest: list[str]) -> int:
    from data_prep.importing import main as import_files

    return import_files(rest)


def _leakage(rest: list[str]) -> int:
    from data_prep.leakage import main as report_leakage

    return report_leakage(rest)


def _tokenize(rest: list[str]) -> int:
    from data_prep.quick import main as tokenize

    return tokenize(rest)


def _which(rest: list[str]) -> int:
    from data_prep.which import main as name_documents

    return name_documents(rest)


def _print_rules() -> None:
    from data_prep.clean import describe_rules

    print("\nRules for `clean`, in an order that makes sense:\n")
    for rule in describe_rules():
        print(f"  {rule.name}: {rule.meaning}" + (f" ({rule.source})" if rule.source else ""))
        for row in rule.keys:
            print(f"    {row.key:28} {row.meaning}; {row.type}, default {row.default}")


def _expected(name: str) -> UserError:
    return UserError(f"expected: python -m data_prep {_PLAIN[name]}", status=EXIT_BAD_INPUT)


_HELP = {"-h", "--help"}
_PLAIN = {  # the commands that read their few arguments by themselves
    "inspect": "inspect DIR [--html FILE | --json]",
    "verify": "verify DIR",
    "task": "task DIR STAGE NUMBER...",
    "demo": "demo [DIR]",
}
_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "tokenize": _tokenize,
    "inspect": _inspect,
    "verify": _verify,
    "which": _which,
    "leakage": _leakage,
    "import": _import,
    "task": _task,
    "demo": _demo,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
