"""Progress of a run: a live line on a terminal, plain lines now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_PLAIN_EVERY_S = 10.0


class Progress:
    """Counts bytes of input towards a total. Use it as a context."""

    def __init__(self, what: str, total_bytes: int) -> None:
        self._what, self._total, self._done = what, total_bytes, 0
        self._start = self._printed = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as Bar

            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            console = Console(stderr=True)
            self._bar = Bar("{task.description}", *columns, console=console, transient=True)
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, size_bytes: int) -> None:
        """Count input that is done."""
        self._done += size_bytes
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, size_bytes)
            return
        now = time.monotonic()
        if now - self._printed >= _PLAIN_EVERY_S:
            self._printed = now
            rate = self._done / 1e6 / (now - self._start)
            share = 100 * self._done / max(self._total, 1)
            print(f"{self._what}: {share:.0f} %, {rate:.1f} MB/s", file=sys.stderr, flush=True)
