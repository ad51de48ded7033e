"""Sizes and names that keep the code readable. Where one is in the way: split, don't raise it."""

import ast

from tests.architecture.source import sources

FILE_LINES = 400
FUNCTION_LINES = 60
LOOP_LINES = 90  # the training loops read top to bottom in one function
LOOPS = {("pretrain/train.py", "train"), ("finetune/train.py", "train")}
MAX_POSITIONAL = 6
NO_NAMES = ("utils", "util", "helpers", "common", "misc")


def functions():
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield source.name, node


def test_files_are_short() -> None:
    for source in sources(
        "model", "runtime", "data_prep", "pretrain", "finetune", "launch", "tests"
    ):
        lines = source.text.count("\n")
        assert lines <= FILE_LINES, f"{source.name} has {lines} lines"


def test_functions_are_short() -> None:
    for name, node in functions():
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        budget = LOOP_LINES if (name, node.name) in LOOPS else FUNCTION_LINES
        assert lines <= budget, f"{name}:{node.lineno} {node.name} has {lines} lines"


def test_few_positional_parameters() -> None:
    for name, node in functions():
        positional = [a for a in node.args.args if a.arg not in ("self", "cls")]
        where = f"{name}:{node.lineno} {node.name}"
        # Forward passes have the field's own signature; private functions pass theirs on.
        is_free = node.name == "forward" or node.name.startswith("_")
        assert len(positional) <= MAX_POSITIONAL or is_free, where


def test_no_dumps_for_leftovers() -> None:
    for source in sources(
        "model", "runtime", "data_prep", "pretrain", "finetune", "launch", "tests"
    ):
        for part in source.name.removesuffix(".py").split("/"):
            assert part not in NO_NAMES, source.name
