"""How fast a run gets on, and the line that tells people. Torch-free."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from typing import TextIO


class Rate:
    """Tokens per second since the last reading, leaving out pauses such as saves.

    waited: asked for the seconds that were spent waiting for data, in all; `waiting` is their
    share of the time between the last two readings.
    """

    def __init__(self, waited: Callable[[], float] = lambda: 0.0) -> None:
        self._waited = waited
        self.waiting = 0.0
        self.pause_until_now()

    def add(self, tokens: int) -> None:
        """Count tokens that one step trained on."""
        self._tokens += tokens

    def pause_until_now(self) -> None:
        """Forget the time since the last reading that no step has claimed."""
        self._start, self._tokens, self._before = time.perf_counter(), 0, self._waited()

    def read(self) -> float:
        """Tokens per second since the last reading; starts the next one."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rate = self._tokens / seconds
        self.waiting = min(1.0, (self._waited() - self._before) / seconds)
        self.pause_until_now()
        return rate


class Progress:
    """One line that stays in place on a terminal; plain lines, now and then, elsewhere."""

    def __init__(
        self, total_steps: int, *, stream: TextIO | None = None, every_s: float = 10
    ) -> None:
        self._total = total_steps
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._every_s = every_s
        self._last = -math.inf
        self._started: tuple[float, int] | None = None

    def update(self, step: int, **values: float | None) -> None:
        """Show the state after a step; a plain stream gets at most a line per `every_s`."""
        now = time.perf_counter()
        if self._started is None:
            self._started = (now, step)
        is_last = step == self._total
        if not self._live and not is_last and now - self._last < self._every_s:
            return
        self._last = now
        line = f"step {step}/{self._total}  {_format(values)}{self._remaining(now, step)}"
        self._write(f"\r\033[K{line}" if self._live else f"{line}\n")
        if self._live and is_last:
            self._write("\n")

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._write(f"\r\033[K{text}\n" if self._live else f"{text}\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a log on a full disk ends no run
            self._stream.write(text)
            self._stream.flush()

    def _remaining(self, now: float, step: int) -> str:
        start, first = self._started or (now, step)
        if step <= first or step >= self._total:
            return ""
        return f"  {duration((now - start) / (step - first) * (self._total - step))} left"


def _format(values: dict[str, float | None]) -> str:
    parts = []
    for name, value in values.items():
        if value is None:
            parts.append(f"{name} n/a")
        elif name == "lr":
            parts.append(f"{name} {value:.2e}")
        elif abs(value) >= 1000:
            parts.append(f"{name} {value:,.0f}")
        else:
            parts.append(f"{name} {value:.4g}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
