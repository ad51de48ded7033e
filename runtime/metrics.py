"""Numbers of a run: metrics.jsonl always, sinks on request; and what the machine says."""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import psutil
import torch

from runtime.records import RecordFile
from runtime.sinks import Histogram, Sink


class MetricsLog:
    """Appends one JSON object per record to metrics.jsonl, and tells the sinks. Main rank only.

    Records of steps after `resume_step` are dropped on opening: they belong to a stretch that
    was not saved and will be trained again, and each step must stand in the file once. The same
    holds for samples.jsonl. clock.jsonl, which counts the hours of a run, keeps all.
    """

    def __init__(
        self, run_dir: Path, clock: "Clock", *, resume_step: int, sinks: Sequence[Sink] = ()
    ) -> None:
        self._metrics = RecordFile(run_dir / "metrics.jsonl", is_made=True)
        self._samples = RecordFile(run_dir / "samples.jsonl")
        self._sinks, self._clock = sinks, clock
        self._clock.tick(resume_step)
        self.rewind(resume_step)

    def rewind(self, step: int) -> None:
        """Drop the records after a step, which the run has gone back to."""
        for file in (self._metrics, self._samples):
            file.rewind(step)
        for sink in self._sinks:
            sink.rewind(step)

    def record(self, step: int, **values: Any) -> None:
        """Write one record. NaN and infinity become null, as JSON has no word for them.

        What a full disk does not take is kept and written later: whether the run can go on is for
        its saves to find out.
        """
        self._metrics.append({"step": step, **_finite(values)})
        self._clock.tick(step)
        scalars = _scalars(values)
        for sink in self._sinks:
            sink.scalars(step, scalars)

    def sample(self, step: int, name: str, **values: Any) -> None:
        """Write what a model wrote; `text` alone goes to the sinks, under a name."""
        self._samples.append({"step": step, **values})
        for sink in self._sinks:
            sink.text(step, name, values["text"])

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """Tell the sinks how the values of a parameter are spread."""
        for sink in self._sinks:
            sink.histogram(step, name, histogram)

    def close(self) -> None:
        """Write what is left. Where the disk still takes none, what is lost is told."""
        self._metrics.close()
        self._samples.close()
        self._clock.close()
        for sink in self._sinks:
            sink.close()


class Clock:
    """Writes to clock.jsonl how long each start of a run has lasted, for what the run costs.

    A line at the start, at most one a minute after it, and one at the end, each with all that the
    report needs: of the lines of one start the last one counts. Nothing of it is ever dropped, as
    steps that are trained again were paid for as well. device: its name, `cpu` for none.
    """

    every_s = 60.0

    def __init__(self, run_dir: Path, ranks: int, device: str) -> None:
        self._file = RecordFile(run_dir / "clock.jsonl")
        start = psutil.Process().create_time()  # imports and checks were paid for, too
        self._about = {"start": start, "ranks": ranks, "device": device}
        self._step, self._last = 0, -math.inf

    def tick(self, step: int) -> None:
        """The run is alive at this step."""
        self._step = step
        if time.monotonic() - self._last >= self.every_s:
            self._write()

    def close(self) -> None:
        """The start has come to its end."""
        self._write()
        self._file.close()

    def _write(self) -> None:
        self._last = time.monotonic()
        self._file.append({"step": self._step, "time": time.time(), **self._about})


def _scalars(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record; of a list each by itself, as in `tokens_by_source/0`."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, list):
            found |= _scalars({f"{name}/{place}": item for place, item in enumerate(value)})
        elif isinstance(value, int | float):
            found[name] = value
    return found


def record_event(run_dir: Path, step: int, kind: str, **values: Any) -> None:
    """Append to events.jsonl what befell a run; unlike metrics, nothing of it is ever dropped.

    Where it cannot be written (a full disk), the run goes on: it was said on the way as well.
    """
    event = {"step": step, "time": time.time(), "kind": kind, **_finite(values)}
    with contextlib.suppress(OSError), (run_dir / "events.jsonl").open("ab") as file:
        file.write(orjson.dumps(event) + b"\n")


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def memory_bytes(device: torch.device) -> int:
    """Peak reserved memory of the GPU, or the resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def device_name(device: torch.device) -> str:
    """The GPU's marketing name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
