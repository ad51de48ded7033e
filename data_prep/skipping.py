"""Data steps that are left out of a run."""

from collections.abc import Sequence
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
