"""torch.compile of a run: whether it works here, where its results are kept, what it costs."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import orjson
import torch
from torch import nn

from runtime import dist
from runtime.dist import Ranks

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_FIRST = "first_start.json"


class Compiled(NamedTuple):
    """What was compiled since the last question."""

    graphs: int
    seconds: float
    directory: Path  # of the cache
    saved_s: float | None = None  # less than the run's first start took, which had no cache
    is_first: bool = False  # what that start compiled

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
            self._directory = Path(os.environ.setdefault(_CACHE, str(run_dir / "compile")))
            reasons = dist.gather_text(_why_not(ranks.device) or "")
            self.problem = next((reason for reason in reasons if reason), None)
        self.is_on = is_wanted and self.problem is None
        self._is_first = True
        self._told_graphs, self._told_s = _counted()

    def apply(self, modules: Iterable[nn.Module]) -> None:
        """Compile each module's forward pass, hooks around it left out, when it is first called."""
        for module in modules if self.is_on else ():
            # Not `module.compile()`, which compiles the hooks too: ZeRO-3's break every graph.
            forward: Callable[..., object] = torch.compile(module.forward)
            module.forward = forward

    def news(self) -> Compiled | None:
        """What was compiled since the last call; None where nothing was."""
        if not self.is_on:
            return None
        graphs, seconds = _counted()
        if graphs == self._told_graphs:
            return None
        new = Compiled(graphs - self._told_graphs, seconds - self._told_s, self._directory)
        self._told_graphs, self._told_s = graphs, seconds
        is_first, self._is_first = self._is_first, False
        return self._compared(new) if is_first else new

    def _compared(self, new: Compiled) -> Compiled:
        """Beside the first start of the run, or noted down as that."""
        path = self._directory / _FIRST
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            first = orjson.loads(path.read_bytes())
            if first["graphs"] == new.graphs and first["torch"] == torch.__version__:
                return new._replace(saved_s=first["seconds"] - new.seconds)
        about = {"graphs": new.graphs, "seconds": new.seconds, "torch": torch.__version__}
        if self._is_main:
            with contextlib.suppress(OSError):  # a full disk costs the comparison alone
                path.write_bytes(orjson.dumps(about))
        return new._replace(is_first=True)


def _counted() -> tuple[int, float]:
    """Graphs that this process has compiled, and the seconds that all of it took."""
    from torch._dynamo.utils import calculate_time_spent, counters

    spent: dict[str, float] = calculate_time_spent()
    return counters["stats"]["unique_graphs"], spent["total_wall_time"]


def _why_not(device: torch.device) -> str | None:
    """Why torch.compile does not work on this machine, in a line; None where it does."""

    def trial(x: torch.Tensor) -> torch.Tensor:
        return x.sin() + 1

    try:
        torch.compile(trial)(torch.zeros(32, device=device))
    except Exception as error:  # of whatever part: a compiler, its headers, Triton, the cache
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None
