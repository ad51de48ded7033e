"""One module per task: what it reads, how it is encoded, and how it is scored."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.tasks.base import Task
    from finetune.tasks.config import TaskKeys

# kind → module and class; imported when one is asked for.
_TASKS = {
    "classification": ("classification", "Classification"),
    "instruct": ("instruct", "Instruct"),
    "language": ("language", "Language"),
    "multi_label": ("multi_label", "MultiLabel"),
    "regression": ("regression", "Regression"),
    "choice": ("choice", "Choice"),
    "token": ("token", "TokenTagging"),
    "span": ("span", "SpanExtraction"),
}


def task_of(keys: "TaskKeys") -> "Task":
    """The task that the keys describe."""
    module, name = _TASKS[keys.kind]
    found: Task = getattr(importlib.import_module(f"{__name__}.{module}"), name)(keys)
    return found
