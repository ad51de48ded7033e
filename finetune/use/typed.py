"""What somebody typed, read as the files of a task are."""

import tempfile
from pathlib import Path
from typing import Any

import orjson

from finetune.tasks.base import Problem, Task
from runtime.errors import EXIT_BAD_INPUT, UserError

_FIELDS = {"span": ("question", "context")}


def fields(task: Task) -> list[str]:
    """The keys whose values a task reads, in the order in which they are asked for."""
    keys = task.keys
    if keys.kind in _FIELDS:
        return list(_FIELDS[keys.kind])
    if keys.kind == "instruct":
        return [keys.prompt_key]
    return [keys.text_key] + ([keys.pair_key] if keys.pair_key else [])


def typed_example(task: Task, values: dict[str, str]) -> Any:
    """One example of a task from its fields. Raises UserError with what is wrong with them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "typed.jsonl"
        path.write_bytes(orjson.dumps(values) + b"\n")
        found = next(task.stream(path, labelled=False), None)
    if found is None or isinstance(found, Problem):
        reason = "nothing was typed" if found is None else found.text
        raise UserError(reason, status=EXIT_BAD_INPUT)
    return found
