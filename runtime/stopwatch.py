"""How long a rank's own work takes, on the clock of the device that does it."""

import time
from types import TracebackType
from typing import Any

import torch


class Stopwatch:
    """Adds up stretches of work: `with watch: …`. A GPU is waited for when `seconds` is read."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._laps: list[tuple[Any, Any]] = []
        self._start: Any = None

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._laps.append((self._start, self._now()))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def reset(self) -> None:
        """Forget what was added up."""
        self._laps.clear()

    def seconds(self) -> float:
        """Their sum."""
        if not self._on_gpu or not self._laps:
            return float(sum(end - start for start, end in self._laps))
        self._laps[-1][1].synchronize()
        return float(sum(start.elapsed_time(end) for start, end in self._laps)) / 1e3
