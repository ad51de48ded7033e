"""Run tasks on a Ray cluster. Inputs and output must be on a file system that all nodes share.

Nothing but numbers goes through Ray: tasks read their inputs and write their results themselves.
"""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.plan import Plan
from runtime.errors import EXIT_BAD_INPUT, UserError

_ROOT = Path(__file__).resolve().parents[2]
_ANSWERS_S = 10.0
_AHEAD = 2  # tasks in flight for each core: the next one waits where the last one ends


def map_by_ray(task: Callable[[int], object], numbers: Sequence[int], plan: Plan) -> Iterator[int]:
    """Run task(number) for every number and yield the numbers, in the order they finish.

    Uses the cluster at `ray.address`, with auto the one this machine belongs to. A task whose
    node dies runs again elsewhere. Raises UserError for what a task raises.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "executor: ray needs Ray; pip install 'ingot[ray]'", status=EXIT_BAD_INPUT
        ) from error
    options = plan.config.ray
    if not ray.is_initialized():
        _connect(options.address)
    try:
        shared = ray.put(_Once(task))
        run = ray.remote(num_cpus=1, max_retries=options.retries)(_run)
        left = list(numbers)[::-1]
        flying: set[Any] = set()
        while left or flying:
            # Ray leaves this function without types.
            cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
            most = _AHEAD * max(cores, 1)
            if plan.config.workers:
                most = min(most, plan.config.workers)
            while left and len(flying) < most:
                flying.add(run.remote(shared, left.pop()))
            ready, _ = ray.wait(list(flying), num_returns=1)
            flying -= set(ready)
            yield from ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise UserError(
            f"Ray lost a task ({type(error).__name__}: {error}); run the same command again: "
            "finished work is kept"
        ) from error


def _connect(address: str) -> None:
    """Join the cluster, once for all stages of a run; Ray itself leaves it when Python ends."""
    import ray

    _refuse_silence(address)
    paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {"env_vars": {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}}
    try:
        ray.init(
            address=address,
            runtime_env=environment,
            log_to_driver=False,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {address} ({error}); start one with `ray start --head`"
        ) from error


def _refuse_silence(address: str) -> None:
    """Ray itself would try for minutes to reach a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", and the like: Ray looks on this machine
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS_S).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster at {address} ({error.strerror or error}); start one with "
            "`ray start --head`"
        ) from error


class _Once:
    """A task as Ray sends it to a worker."""

    def __init__(self, task: Callable[[int], object]) -> None:
        self.task = task
        self.folder = Path.cwd()  # what relative paths of the config start from


def _run(once: _Once, number: int) -> int:
    os.chdir(once.folder)
    once.task(number)
    return number
