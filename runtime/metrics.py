"""Numbers of a run: metrics.jsonl always, TensorBoard on request, a progress line for people."""

import contextlib
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import orjson
import psutil
import torch

from runtime.errors import UserError
from runtime.records import keep_until


class MetricsLog:
    """Appends one JSON object per record to metrics.jsonl (and TensorBoard). Main rank only.

    Records of steps after `resume_step` are dropped on opening: they belong to a stretch that
    was not saved and will be trained again, and each step must stand in the file once.
    """

    def __init__(self, run_dir: Path, *, resume_step: int, tensorboard: bool) -> None:
        self._run_dir = run_dir
        self._path = run_dir / "metrics.jsonl"
        self._tensorboard = tensorboard
        self._pending = b""
        self._open(resume_step)

    def _open(self, resume_step: int) -> None:
        try:
            keep_until(self._path, resume_step)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror}") from error
        self._writer: Any = None
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(self._run_dir / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=resume_step + 1)

    def rewind(self, step: int) -> None:
        """Drop the records after a step, which the run has gone back to."""
        self.close()
        self._pending = b""
        self._open(step)

    def record(self, step: int, **values: Any) -> None:
        """Write one record. NaN and infinity become null, as JSON has no word for them.

        What a full disk does not take is kept and written later: whether the run can go on is for
        its saves to find out.
        """
        self._pending += orjson.dumps({"step": step, **_finite(values)}) + b"\n"
        self._write_pending()
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step)

    def _write_pending(self) -> None:
        with contextlib.suppress(OSError):
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) or 0 :]

    def close(self) -> None:
        """Write what is left. Where the disk still takes none, what is lost is told."""
        self._write_pending()
        if self._pending:
            lost = self._pending.count(b"\n")
            print(f"warning: {self._path}: the last {lost} records are lost", file=sys.stderr)
        self._file.close()
        if self._writer is not None:
            self._writer.close()


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


class Rate:
    """Tokens per second since the last reading, leaving out pauses such as saves."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._tokens = 0

    def add(self, tokens: int) -> None:
        """Count tokens that one step trained on."""
        self._tokens += tokens

    def pause_until_now(self) -> None:
        """Forget the time since the last reading that no step has claimed."""
        self._start, self._tokens = time.perf_counter(), 0

    def read(self) -> float:
        """Tokens per second since the last reading; starts the next one."""
        now = time.perf_counter()
        rate = self._tokens / max(now - self._start, 1e-9)
        self._start, self._tokens = now, 0
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
