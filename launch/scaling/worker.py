"""One rank of a measured run: `worker.py MEASURES CONFIG [key=value …]`, started by a launcher.

It is `python -m pretrain CONFIG …` itself, with a clock around each step and around each call of
torch.distributed. What it found is written to MEASURES_rank0.json and so on when the run ends.
"""

import contextlib
import functools
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "_all_gather_base",
    "_reduce_scatter_base",
)


class Clock:
    """Seconds inside collectives: on the host, or on the GPU's stream that called them."""

    def __init__(self, torch: Any) -> None:
        self._cuda = torch.cuda if torch.cuda.is_available() else None
        self._host = 0.0
        self._device = 0.0
        self._events: list[tuple[Any, Any]] = []
        self._depth = 0  # a collective that calls another is counted once
        self.calls = 0

    @contextlib.contextmanager
    def running(self, *, is_call: bool = True) -> Iterator[None]:
        """Count what happens inside."""
        self._depth += 1
        before = time.perf_counter()
        begun = self._mark() if self._depth == 1 else None
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._host += time.perf_counter() - before
                self.calls += is_call
                if begun is not None:
                    self._events.append((begun, self._mark()))

    def _mark(self) -> Any:
        if self._cuda is None:
            return None
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> float:
        """Seconds so far; waits for the GPU."""
        if self._cuda is None:
            return self._host
        self._cuda.synchronize()
        self._device += sum(begun.elapsed_time(ended) for begun, ended in self._events) / 1000
        self._events.clear()  # else each reading would take longer, inside what is measured
        return self._device


class Waited:
    """The handle of an asynchronous collective, whose wait is counted."""

    def __init__(self, work: Any, clock: Clock) -> None:
        self._work, self._clock = work, clock

    def wait(self, *arguments: Any, **options: Any) -> Any:
        """Wait for it."""
        with self._clock.running(is_call=False):
            return self._work.wait(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def count_collectives(torch: Any, clock: Clock) -> None:
    """Have every collective of torch.distributed timed; before anybody else imports them."""
    homes = (torch.distributed, torch.distributed.distributed_c10d)
    for name in COLLECTIVES:
        plain = getattr(torch.distributed, name, None)
        if plain is not None:
            timed = _timed(plain, clock)
            for home in homes:
                setattr(home, name, timed)
    module = torch.distributed.distributed_c10d
    begin, wait = module._coalescing_manager, module._CoalescingManager.wait

    @contextlib.contextmanager
    def coalescing(*arguments: Any, **options: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack, begin(*arguments, **options) as works:
            yield works
            stack.enter_context(clock.running())  # calls are made where the block ends

    def timed_wait(works: Any) -> None:
        with clock.running(is_call=False):
            wait(works)

    module._coalescing_manager = coalescing
    module._CoalescingManager.wait = timed_wait


def _timed(plain: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    @functools.wraps(plain)
    def call(*arguments: Any, **options: Any) -> Any:
        with clock.running():
            work = plain(*arguments, **options)
        return work if work is None else Waited(work, clock)

    return call


def peak_memory(torch: Any) -> int:
    """Bytes that this rank took at most: reserved on its GPU, or resident on the host."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run the rank. Ends as `python -m pretrain` does."""
    root = str(Path(__file__).resolve().parents[2])
    # Started as a file: this folder stands where the source tree should.
    sys.path[0] = root
    import torch
    import torch.distributed

    clock = Clock(torch)
    count_collectives(torch, clock)
    from runtime import dist, engine, metrics

    starts: list[tuple[float, float, int]] = []  # of each step: when; collectives so far, calls
    plain_step = engine.Engine.train_step

    def train_step(self: Any, *arguments: Any, **options: Any) -> Any:
        communication_s = clock.read()
        starts.append((time.perf_counter(), communication_s, clock.calls))
        return plain_step(self, *arguments, **options)

    # DeepSpeed's runner adds --local_rank=N before ours.
    measures, *arguments = [w for w in sys.argv[1:] if not w.startswith("--local_rank")]

    def write() -> None:
        rank = dist.rank_from_env()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = {
            "rank": rank,
            "host": os.uname().nodename,
            "device": metrics.device_name(device),
            "threads": torch.get_num_threads(),
            "memory_bytes": peak_memory(torch),
            "seconds": [b[0] - a[0] for a, b in itertools.pairwise(starts)],
            "communication_s": [b[1] - a[1] for a, b in itertools.pairwise(starts)],
            "calls": [b[2] - a[2] for a, b in itertools.pairwise(starts)],
        }
        Path(f"{measures}_rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")

    # From outside: the loop that is measured has no place for a clock, and shall have none.
    engine.Engine.train_step = train_step  # type: ignore[method-assign]
    dist.before_shutdown(write)
    from pretrain.__main__ import main as pretrain
    from runtime.errors import leave

    leave(pretrain(arguments))


if __name__ == "__main__":
    main()
