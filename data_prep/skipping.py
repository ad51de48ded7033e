"""Data steps that are left out: a position of the training run → a data step, and back."""

from collections.abc import Iterator, Sequence
from typing import Any

from runtime.errors import UserError

Window = tuple[int, int]  # data steps [first, stop)


class SkippedSteps:
    """Windows of data steps that no batch is made of; sorted, and never touching one another.

    Everything is arithmetic on the windows: O(number of windows), whatever their length.
    """

    def __init__(self, windows: Sequence[Window] = ()) -> None:
        self.windows: tuple[Window, ...] = ()
        for first, stop in windows:
            self.add(first, stop)

    def add(self, first: int, stop: int) -> None:
        """Leave out [first, stop) too. Raises ValueError where that is no window."""
        if not 0 <= first <= stop:
            raise ValueError(f"no window of data steps: [{first}, {stop})")
        apart = []
        for begin, end in self.windows:
            if end < first or begin > stop:
                apart.append((begin, end))
            else:
                first, stop = min(first, begin), max(stop, end)
        self.windows = tuple(sorted([*apart, (first, stop)] if first < stop else apart))

    def next_kept(self, step: int) -> int:
        """The first data step from `step` on that is not left out."""
        for first, stop in self.windows:
            if first <= step < stop:
                return stop
        return step

    def steps_from(self, step: int) -> Iterator[int]:
        """Yield every data step from `step` on that is not left out, for ever."""
        while True:
            step = self.next_kept(step)
            yield step
            step += 1

    def data_step(self, position: int) -> int:
        """The data step of a training position: the kept step that so many kept ones precede."""
        step = position
        for first, stop in self.windows:
            if step < first:
                break
            step += stop - first
        return step

    def position(self, step: int) -> int:
        """How many kept data steps come before `step`."""
        return step - sum(min(stop, step) - first for first, stop in self.windows if first < step)

    def to_json(self) -> list[list[int]]:
        """The windows as a loader's state holds them."""
        return [list(window) for window in self.windows]

    @classmethod
    def from_json(cls, stored: Any) -> "SkippedSteps":
        """The windows of a state. Raises UserError where they are none."""
        try:
            windows = [(first, stop) for first, stop in stored]
            if not all(type(bound) is int for window in windows for bound in window):
                raise TypeError
            return cls(windows)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"cannot resume: the loader's skipped windows are {stored!r}"
            ) from error
