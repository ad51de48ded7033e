"""How a peer in a process of its own is told to step: a line each way, numbers in JSON.

    → step 3        ← {"seconds": …, "cpu_s": …, "loss": …}      three steps, timed here; of one
    → memory        ← {"peak_mb": …, "step_mb": …}
    → profile FILE  ← {}                             a table of the next step's operators
    → quit

The peer owns its loop: it calls `wanted()` before each step and `done(loss)` after it.
"""

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor


class Orders:
    """The peer's end of the pipe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Libraries print: they get stderr, and the pipe is ours alone.
        self._replies: IO[str] = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._left = self._asked = 0
        self._began = self._began_cpu = self._rest_mb = 0.0
        self._profiler: Any = None

    def ready(self) -> None:
        """The model is built and nothing was computed yet."""
        self._reply(ready=True)

    def imported(self, *, compiles: bool) -> None:
        """Everything is imported and there is no model yet: what memory is counted from."""
        # The first step of any optimizer imports the one, the first compiled step the other.
        importlib.import_module("torch._dynamo")

        if compiles:
            importlib.import_module("torch._inductor.compile_fx")
        self._rest_mb = _resident_mb("VmRSS")

    def wanted(self) -> bool:
        """Wait until another step is wanted; False where none ever will be."""
        if self._left:
            return True
        for line in sys.stdin:
            word, _, rest = line.strip().partition(" ")
            if word == "memory":
                self._reply(**self._memory())
            elif word == "profile":
                self._profiler = _Profile(Path(rest), self._device)
                self._profiler.start()
                self._left = self._asked = 1
                return True
            elif word == "step":
                self._left = self._asked = int(rest)
                self._wait_for_device()
                self._began, self._began_cpu = time.perf_counter(), time.process_time()
                return True
            else:
                break
        return False

    def done(self, loss: Tensor) -> None:
        """A step has ended, with this loss."""
        self._left -= 1
        if self._left:
            return
        self._wait_for_device()
        seconds = (time.perf_counter() - self._began) / self._asked
        cpu_s = (time.process_time() - self._began_cpu) / self._asked
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # the next peer wants the memory
        self._reply(seconds=seconds, cpu_s=cpu_s, loss=float(loss))

    def forget_peak(self) -> None:
        """Memory counts from here: what compiling took is over."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS, see proc(5)

    def _memory(self) -> dict[str, float]:
        if self._device.type == "cuda":
            reserved = torch.cuda.max_memory_reserved() / 1e6
            return {"peak_mb": reserved, "step_mb": reserved}
        whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        found = {"peak_mb": whole, "step_mb": _resident_mb("VmHWM") - self._rest_mb}
        self.forget_peak()
        return found

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _reply(self, **values: Any) -> None:
        self._replies.write(json.dumps(values) + "\n")


class _Profile:
    """Writes what torch.profiler saw of a step."""

    def __init__(self, path: Path, device: torch.device) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._path, self._on_gpu = path, device.type == "cuda"
        self._profiler = torch.profiler.profile(activities=kinds)

    def start(self) -> None:
        self._profiler.start()

    def stop(self) -> None:
        self._profiler.stop()
        order = "self_cuda_time_total" if self._on_gpu else "self_cpu_time_total"
        table = self._profiler.key_averages().table(sort_by=order, row_limit=40)
        self._path.write_text(table, encoding="utf-8")


def _resident_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
