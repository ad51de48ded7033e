"""Times of work on a GPU, or on a CPU where a sweep is only tried out."""

import statistics
import time
from collections.abc import Callable

import torch


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def median_seconds(
    call: Callable[[], object], device: torch.device, *, repeats: int = 10, turns: int = 5
) -> float:
    """Median over turns of the seconds that a call takes, after two that are not counted."""
    call(), call()
    found = []
    for _ in range(turns if device.type == "cuda" else 1):
        wait(device)
        start = time.perf_counter()
        for _ in range(repeats if device.type == "cuda" else 1):
            call()
        wait(device)
        found.append((time.perf_counter() - start) / (repeats if device.type == "cuda" else 1))
    return statistics.median(found)
