"""Progress of a stage: a live view on a terminal, plain lines now and then elsewhere."""

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from data_prep.tally import UnitReport

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_PLAIN_EVERY_S = 10.0
_REASONS = 3  # named in the view; the rest is in the statistics


class Progress:
    """Counts bytes of input towards a total, and what became of the documents. A context."""

    def __init__(self, what: str, total_bytes: int) -> None:
        self._what, self._total, self._done = what, total_bytes, 0
        self._documents = 0
        self._dropped: Counter[str] = Counter()
        self._start = self._printed = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[told]}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=self._total, told="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, size_bytes: int, report: UnitReport | None = None) -> None:
        """Count a task that is done."""
        self._done += size_bytes
        if report:
            for segment in report.segments:
                self._documents += segment.records
                self._dropped.update(segment.bad)
                self._dropped.update(segment.dropped)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=size_bytes, told=self._told())
            return
        now = time.monotonic()
        if now - self._printed >= _PLAIN_EVERY_S:
            self._printed = now
            rate = self._done / (now - self._start)
            share = 100 * self._done / max(self._total, 1)
            left_s = (self._total - self._done) / max(rate, 1.0)
            print(
                f"{self._what}: {share:.0f} %, {rate / 1e6:.1f} MB/s, {_clock(left_s)} left"
                f"{', ' if self._documents else ''}{self._told()}",
                file=sys.stderr,
                flush=True,
            )

    def _told(self) -> str:
        if not self._documents:
            return ""
        parts = [f"{self._documents:,} documents"]
        parts += [f"{name} {count:,}" for name, count in self._dropped.most_common(_REASONS)]
        return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
