"""Checks that every kind of run shares. Torch-free."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from runtime.config import Problem
from runtime.sections import Log, Schedule


def check_batch(
    global_batch_size: int, micro_batch_size: int | None, ranks: int
) -> Iterator[Problem]:
    """The global batch must split evenly into micro-batches and ranks."""
    micro = micro_batch_size or 1
    unit = micro * ranks
    if global_batch_size % unit:
        below, above = global_batch_size // unit * unit, -(-global_batch_size // unit) * unit
        yield Problem(
            "batch.global_batch_size",
            f"{global_batch_size} is not divisible by micro_batch_size × ranks = {micro} × {ranks} "
            f"= {unit}; write {' or '.join(str(n) for n in (below, above) if n)}",
        )


def check_schedule(schedule: Schedule, steps: int) -> Iterator[Problem]:
    """Warm-up and decay must fit into the run."""
    if schedule.warmup_steps >= steps:
        yield Problem(
            "schedule.warmup_steps",
            f"{schedule.warmup_steps} is not less than the run's {steps} steps; "
            f"a tenth would be {steps // 10}",
        )
    elif schedule.warmup_steps + (schedule.decay_steps or 0) > steps:
        yield Problem(
            "schedule.decay_steps",
            f"{schedule.decay_steps} and warmup_steps = {schedule.warmup_steps} are more than the "
            f"run's {steps} steps; write at most {steps - schedule.warmup_steps}",
        )


def check_log(log: Log) -> Iterator[Problem]:
    """What the log needs must be installed."""
    if log.wandb is not None and importlib.util.find_spec("wandb") is None:
        yield Problem(
            "log.wandb",
            "needs wandb, which is not installed here; run pip install 'ingot[wandb]'"
            ", or write none",
        )


def check_run_dir(path: Path) -> Iterator[Problem]:
    """The run directory, or the nearest parent that exists, must be writable."""
    while not path.exists() and path != path.parent:
        path = path.parent
    if not path.is_dir():
        yield Problem("run.dir", f"{path} is a file, not a directory; choose another place")
    elif not os.access(path, os.W_OK | os.X_OK):
        yield Problem("run.dir", f"{path} is not writable for this user; choose another place")
