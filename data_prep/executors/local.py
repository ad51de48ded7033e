"""Run tasks in processes of this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from runtime.errors import UserError

_task: Callable[[int], object] | None = None  # what this worker process runs


def map_by_processes(
    task: Callable[[int], object], numbers: Sequence[int], workers: int
) -> Iterator[int]:
    """Run task(number) for every number and yield the numbers, in the order they finish.

    Closing the iterator early stops after the tasks that are running. Raises UserError when a
    worker process is killed from outside.
    """
    if workers == 1 or len(numbers) <= 1:
        yield from _in_this_process(task, numbers)
        return
    # Not fork: the parent has used the tokenizers library's threads, which fork would break.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(numbers)), context, _start_worker, (task,))
    try:
        # The parent decides when to stop: workers start with Ctrl-C blocked, and keep it so.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [pool.submit(_run, number) for number in numbers]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for want of memory; lower workers "
            "and run again: finished work is kept"
        ) from error
    finally:
        # A Ctrl-C inside the pool's own shutdown would leave it half done: the workers wait for
        # a word that never comes, and the process for them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _in_this_process(task: Callable[[int], object], numbers: Sequence[int]) -> Iterator[int]:
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one worker means one core
    try:
        for number in numbers:
            task(number)
            yield number
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _start_worker(task: Callable[[int], object]) -> None:
    global _task
    _task = task
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent is gone: nobody would collect its work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _run(number: int) -> int:
    assert _task is not None, "the pool's initializer sets the task"
    _task(number)
    return number
