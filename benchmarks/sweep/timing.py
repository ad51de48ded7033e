"""Times of work on a GPU, or on a CPU where a sweep is only tried out."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

TURNS = 9


class Times(NamedTuple):
    """Seconds that a call took, a number for each turn."""

    turns: list[float]

    @property
    def median(self) -> float:
        """Of the turns."""
        return statistics.median(self.turns)

    @property
    def minimum(self) -> float:
        """Of the turns."""
        return min(self.turns)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def is_over(until: float) -> bool:
    """Whether a time of `time.monotonic` has come."""
    return time.monotonic() >= until


def alternate(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    repeats: int = 5,
    turns: int = TURNS,
    until: float = math.inf,
) -> dict[str, Times]:
    """Time calls turn by turn, after two of each that are not counted.

    repeats: calls in a turn on a GPU, where a single one may be too short to be timed. until: of
    `time.monotonic`; from then on no turn begins but the first.
    """
    for call in calls.values():
        call(), call()
    names, repeats = list(calls), repeats if device.type == "cuda" else 1
    found: dict[str, Times] = {name: Times([]) for name in names}
    for turn in range(turns):
        if turn and is_over(until):
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wait(device)
            start = time.perf_counter()
            for _ in range(repeats):
                calls[name]()
            wait(device)
            found[name].turns.append((time.perf_counter() - start) / repeats)
    return found
