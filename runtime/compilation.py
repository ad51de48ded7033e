"""torch.compile of a run: whether it works here, where its results are kept, what it costs."""

import contextlib
import hashlib
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import orjson
import torch
from torch import nn

from runtime import dist, hardware, heap
from runtime.dist import Ranks

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class Compiled(NamedTuple):
    """What was compiled since the last question."""

    graphs: int
    seconds: float
    directory: Path  # of the cache
    saved_s: float | None = None  # less than without the cache
    is_first: bool = False  # what the cache had nothing of

    def __str__(self) -> str:
        """In a line for the log."""
        told = f"compiled {self.graphs} graph{'s' * (self.graphs != 1)} in {self.seconds:.1f} s"
        if self.is_first:
            return f"{told}; kept in {self.directory} for the next start"
        if self.saved_s is None:
            return told
        return f"{told}, {self.saved_s:.1f} s less than without {self.directory}"


class Compilation:
    """Compiles modules, with a cache in the run directory, or leaves them as they are."""

    def __init__(self, run_dir: Path, ranks: Ranks, *, is_wanted: bool) -> None:
        """Try whether compiling works here, where it is wanted. Collective.

        A cache that the user has named in TORCHINDUCTOR_CACHE_DIR is used in place of ours.
        """
        self.problem: str | None = None  # why nothing is compiled, though it is wanted
        self._is_main = ranks.is_main
        if is_wanted:
            # Of each kind of machine its own: torch's keys do not tell the vectors of one CPU from
            # those of another, and would take code that fills half of them.
            own = run_dir / "compile" / _kind_of_machine(ranks.device)
            self._directory = Path(os.environ.setdefault(_CACHE, str(own)))
            self._times = run_dir / "compile" / "seconds.json"
            reasons = dist.gather_text(_why_not(ranks.device) or "")
            self.problem = next((reason for reason in reasons if reason), None)
        self.is_on = is_wanted and self.problem is None
        self._is_first = True
        self._told = _counted()

    def apply(self, modules: Iterable[nn.Module]) -> None:
        """Compile each module's forward pass, hooks around it left out, when it is first called."""
        for module in modules if self.is_on else ():
            # Not `module.compile()`, which compiles the hooks too: ZeRO-3's break every graph.
            forward: Callable[..., object] = torch.compile(module.forward)
            module.forward = forward

    def news(self) -> Compiled | None:
        """What was compiled since the last call; None where nothing was.

        Cheap enough for each step. What compiling left free in the heap goes back to the system.
        """
        if not self.is_on or _graphs() == self._told.graphs:
            return None
        heap.give_back()
        now, before = _counted(), self._told
        new = Compiled(now.graphs - before.graphs, now.seconds - before.seconds, self._directory)
        is_cold = now.hits == before.hits
        is_first, self._is_first, self._told = self._is_first, False, now
        return self._compared(new, is_cold=is_cold) if is_first else new

    def _compared(self, new: Compiled, *, is_cold: bool) -> Compiled:
        """Beside what a start of the run took without its cache, or noted down as that."""
        times: dict[str, float] = {}
        with contextlib.suppress(OSError, ValueError):
            times = orjson.loads(self._times.read_bytes())
        if not is_cold:
            cold = times.get(str(new.graphs))
            return new._replace(saved_s=None if cold is None else cold - new.seconds)
        if self._is_main:
            with contextlib.suppress(OSError):  # a full disk costs the comparison alone
                self._times.parent.mkdir(exist_ok=True)
                self._times.write_bytes(orjson.dumps({**times, str(new.graphs): new.seconds}))
        return new._replace(is_first=True)


class _Counted(NamedTuple):
    graphs: int  # that this process has compiled
    seconds: float  # that all of it took
    hits: int  # of the cache


def _counted() -> _Counted:
    from torch._dynamo.utils import calculate_time_spent, counters

    spent: dict[str, float] = calculate_time_spent()
    found = (
        counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
    )
    return _Counted(_graphs(), spent["total_wall_time"], found)


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _kind_of_machine(device: torch.device) -> str:
    """A short name for machines that can run one another's compiled code."""
    if device.type == "cuda":
        what = [torch.cuda.get_device_name(device)]
    else:
        what = [hardware.cpu_name(), *hardware.cpu_flags(), torch.backends.cpu.get_cpu_capability()]
    text = "\n".join([platform.machine(), *what])
    return f"{device.type}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _why_not(device: torch.device) -> str | None:
    """Why torch.compile does not work on this machine, in a line; None where it does."""

    def trial(x: torch.Tensor) -> torch.Tensor:
        return x.sin() + 1

    x = torch.linspace(0, 1, 1000, device=device)
    try:
        if device.type == "cpu":
            _trust_vectors()
        found = torch.compile(trial)(x)
    except Exception as error:  # of whatever part: a compiler, its headers, Triton, the cache
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None if torch.allclose(found, trial(x), atol=1e-3) else "it computes wrong numbers"


def _trust_vectors() -> None:
    """Leave it to the trial whether the CPU's vectors work: inductor's own takes 10 s.

    It asks the compiler for AVX2 or AVX-512, which any that reads torch's headers knows; for what
    is newer (AMX) inductor still asks.
    """
    import torch._inductor.config as settings

    if settings.cpp.vec_isa_ok is None:  # not said in TORCHINDUCTOR_VEC_ISA_OK
        settings.cpp.vec_isa_ok = True
