"""Tasks of EleutherAI's lm-evaluation-harness on a model directory. The only file that imports it.

A task is a YAML file, and may name Python to run: only tasks that one trusts are for running.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import EXIT_BAD_INPUT, UserError

# The harness's own numbers beside a metric's value: `acc,none` and `acc_stderr,none`.
_FILTER = ","


class Asked(NamedTuple):
    """What to run, and how."""

    tasks: tuple[str, ...]
    folders: tuple[Path, ...] = ()  # with tasks of one's own
    n_shots: int | None = None  # None: as the task says
    limit: int | None = None  # examples of each task; None: all
    batch_size: int = 16
    online: bool = False  # whether the harness may load from a hub


def run_tasks(
    directory: Path, asked: Asked, device: str, dtype: str | None
) -> dict[str, dict[str, float]]:
    """Metrics by task and name, as the harness computes them with transformers' model.

    Raises UserError where the harness is absent, or has no such task.
    """
    if not asked.online:  # before anything is imported that would ask
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"--tasks needs lm-eval ({error}); pip install 'ingot[eval]'", status=EXIT_BAD_INPUT
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=[str(folder) for folder in asked.folders] or None)
    unknown = [task for task in asked.tasks if not manager.match_tasks([task])]
    if unknown:
        raise UserError(
            f"--tasks: the harness has no task {unknown[0]!r}; --task-folder names a folder with "
            "YAML files of your own",
            status=EXIT_BAD_INPUT,
        )
    with _alone():
        found = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(directory), "dtype": dtype or "auto"},
            tasks=list(asked.tasks),
            num_fewshot=asked.n_shots,
            limit=asked.limit,
            batch_size=asked.batch_size,
            device=device,
            task_manager=manager,
            log_samples=False,
        )
    return {task: _numbers(values) for task, values in (found or {})["results"].items()}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hide a launcher's LOCAL_RANK: by it alone, accelerate waits for other ranks to come."""
    hidden = os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if hidden is not None:
            os.environ["LOCAL_RANK"] = hidden


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """`acc,none` becomes acc; of another filter than none, acc,filter."""
    return {
        name.removesuffix(f"{_FILTER}none"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and _FILTER in name
    }
