"""When a step goes wrong: what to do about it, decided alike on all ranks. Torch-free.

Skipping a step whose loss or gradients are not finite, or stand far above the last ones, and going
back when that does not help, is what people have done by hand (OPT-175B, arXiv 2205.01068; PaLM,
arXiv 2204.02311, section 5.1); the measure of a spike is OLMo's (arXiv 2501.00656).
"""

import math
import operator
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from runtime.sections import Health as Settings

_LEAST_HISTORY = 16  # losses without which nothing is called a spike
_LR_FACTOR = 0.5
_MOST_AT_FLOOR = 10  # steps in a row that overflow at fp16's lowest loss scale
_SLOW_WINDOW = 12  # steps whose median is compared
_SLOW_SHARE = 0.1  # of a step's time, that a rank must lose to be worth a line,
_SLOW_LEAST_S = 0.01  # and so many seconds: the noise of a busy machine is no slow rank
_SLOW_PAUSE = 100  # steps until the same rank is named again


class Verdict(NamedTuple):
    """What was wrong with a step, and what is to be done."""

    kind: Literal["not_finite", "spike"]
    action: Literal["log", "skip", "lower_lr", "roll_back", "give_up"]
    # Data steps [first, stop) to leave out after going back; first None: since the checkpoint
    window: tuple[int | None, int] = (None, 0)


class Health:
    """Judges every step by its loss. Its state is a few numbers, stored with a checkpoint."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._losses: deque[float] = deque(maxlen=settings.spike_window)
        self._skipped: list[int] = []  # data steps of the steps in a row that were not finite
        self._is_spike = False
        self.lr_factor = 1.0
        self.rollbacks = 0

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last step was not finite: no time to save, and to delete what was good."""
        return bool(self._skipped)

    def accept(self, loss: float) -> bool:
        """Whether a step of this loss may change the weights."""
        if not math.isfinite(loss):
            return False
        self._is_spike = self._is_above(loss)
        self._losses.append(loss)  # a spike too: a new level must not count as one for ever
        return not self._is_spike or self._settings.on_spike == "log"

    def _is_above(self, loss: float) -> bool:
        sigmas = self._settings.spike_sigma
        if not sigmas or len(self._losses) < _LEAST_HISTORY:
            return False
        mean, deviation = statistics.fmean(self._losses), statistics.stdev(self._losses)
        return loss > mean + sigmas * deviation

    def judge(
        self,
        data_step: int,
        *,
        applied: bool,
        is_finite: bool,
        at_lowest_scale: bool | None,
        has_gradients: bool = True,
    ) -> Verdict | None:
        """What follows from a step; None where nothing was wrong with it.

        data_step: its batch. applied: whether it changed the weights; is_finite: whether they are
        finite after it. at_lowest_scale: of fp16's loss scaling; None without. has_gradients:
        whether those were finite.
        """
        is_spike, self._is_spike = self._is_spike, False
        if not is_finite:
            return Verdict("not_finite", "roll_back", (data_step, data_step + 1))
        if applied:
            self._skipped.clear()
            return Verdict("spike", "log") if is_spike else None
        if is_spike and has_gradients:
            return self._after_spike(data_step)
        if at_lowest_scale is False:
            return None  # fp16 is looking for a scale that fits: nothing is wrong
        self._skipped.append(data_step)
        if at_lowest_scale and len(self._skipped) >= _MOST_AT_FLOOR:
            return Verdict("not_finite", "give_up")
        if at_lowest_scale is None and len(self._skipped) >= self._settings.max_skipped_steps:
            return Verdict("not_finite", "roll_back", (self._skipped[0], data_step + 1))
        return Verdict("not_finite", "skip")

    def _after_spike(self, data_step: int) -> Verdict:
        if self._settings.on_spike == "rollback":
            return Verdict("spike", "roll_back", (None, data_step + 1))
        if self._settings.on_spike == "lower_lr":
            self.lr_factor *= _LR_FACTOR
            return Verdict("spike", "lower_lr")
        return Verdict("spike", "skip")

    def count_rollback(self) -> bool:
        """Count a roll-back; False where there were enough of them."""
        self.rollbacks += 1
        return self.rollbacks <= self._settings.max_rollbacks

    def state_dict(self) -> dict[str, Any]:
        """All that decides what is thought of the next step; plain JSON."""
        return {
            "losses": list(self._losses),
            "skipped": list(self._skipped),
            "lr_factor": self.lr_factor,
            "rollbacks": self.rollbacks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken; what it does not say stays as it is.

        Raises TypeError or ValueError for what is no such state.
        """
        self._losses.clear()
        self._losses.extend(float(loss) for loss in state.get("losses", ()))
        self._skipped = [operator.index(step) for step in state.get("skipped", ())]
        self.lr_factor = float(state.get("lr_factor", self.lr_factor))
        self.rollbacks = operator.index(state.get("rollbacks", self.rollbacks))


class Slow(NamedTuple):
    """A rank that the others wait for."""

    rank: int
    own_s: float  # median of its own work a step
    others_s: float  # the same of the other ranks


class SlowRanks:
    """Compares how long the ranks' own work takes, step by step, in medians of a dozen steps."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._seconds: deque[Sequence[float]] = deque(maxlen=_SLOW_WINDOW)
        self._steps: deque[float] = deque(maxlen=_SLOW_WINDOW)
        self._count = 0
        self._named: dict[int, int] = {}  # rank → when

    def add(self, own_s: Sequence[float], step_s: float) -> Slow | None:
        """Count one step: each rank's own seconds, and the whole step's. Returns a rank to name."""
        self._count += 1
        self._seconds.append(own_s)
        self._steps.append(step_s)
        if not self._factor or len(own_s) < 2 or len(self._seconds) < _SLOW_WINDOW:
            return None
        medians = [statistics.median(rank) for rank in zip(*self._seconds, strict=True)]
        slowest = max(range(len(medians)), key=medians.__getitem__)
        others = statistics.median_low(m for rank, m in enumerate(medians) if rank != slowest)
        lost = medians[slowest] - others
        is_slow = medians[slowest] > self._factor * others
        is_worth_it = lost > max(_SLOW_LEAST_S, _SLOW_SHARE * statistics.median(self._steps))
        was_named = self._count - self._named.get(slowest, -_SLOW_PAUSE) < _SLOW_PAUSE
        if not is_slow or not is_worth_it or was_named:
            return None
        self._named[slowest] = self._count
        return Slow(slowest, medians[slowest], others)
