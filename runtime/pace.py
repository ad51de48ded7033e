"""Which rank holds the others up: each one's own work, step by step, compared on the main rank."""

import time
from collections.abc import Sequence

import torch

from runtime.dist import Ranks
from runtime.health import Slow, SlowRanks
from runtime.sections import Health
from runtime.stopwatch import Stopwatch


class Pace:
    """Adds up a rank's own work in a step: making the batch, and its forward passes.

    Under ZeRO-3 forward passes wait for the others' parameters, so a rank that computes slowly is
    not told from those that wait for it; one that makes its batches slowly is.
    """

    def __init__(self, settings: Health, ranks: Ranks) -> None:
        self._slow = SlowRanks(settings.slow_rank_factor)
        self._ranks = ranks
        self._own_s, self._last = 0.0, time.perf_counter()
        self.own_work = Stopwatch(torch.device("cpu"))  # `with pace.own_work: …`

    def add(self, seconds: float) -> None:
        """Count work of the current step."""
        self._own_s += seconds

    def take(self) -> list[float]:
        """Own seconds since the last call, at this rank's place among zeros: to be summed."""
        everyone = [0.0] * self._ranks.world_size
        everyone[self._ranks.rank] = self._own_s + self.own_work.seconds()
        self._own_s = 0.0
        self.own_work.reset()
        return everyone

    def compare(self, seconds: Sequence[float]) -> Slow | None:
        """A rank to name, after one more step of which each took so many seconds."""
        now = time.perf_counter()
        step_s, self._last = now - self._last, now
        return self._slow.add(seconds, step_s)
