"""What the protections of a run cost in a step, measured where they stand in the loop.

A real run trains, and every call that guards it is timed: signs of life, the look at signals, the
check for failed saves, judging the loss, the comparison of ranks' work and, every
health.checksum_every_steps, of their memory. The share of a step that they take is far below what
two timed runs could tell apart. The ranks' agreement is listed apart: it is one collective that
the loop had before, and its time is mostly waiting for the slower rank.

    python benchmarks/protections.py CONFIG.yaml [key=value …]     (or under torchrun)
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pretrain import train as loop
from pretrain.__main__ import main as pretrain
from runtime import dist, provenance, zero_layout
from runtime.checkpoint.saver import Saver
from runtime.engine import Engine
from runtime.errors import leave
from runtime.health import Health
from runtime.pace import Pace
from runtime.signals import StopRequest
from runtime.watchdog import Watchdog

GUARDS: list[tuple[Any, str]] = [
    (Watchdog, "beat"),
    (StopRequest, "check"),
    (Saver, "failed"),
    (Health, "accept"),
    (Health, "judge"),
    (Pace, "add"),
    (Pace, "take"),
    (Pace, "compare"),
    (zero_layout, "skip_step"),
    (Engine, "compare_replicas"),
]
AGREEMENT: list[tuple[Any, str]] = [(dist, "sum_over_ranks")]

spent: dict[str, float] = defaultdict(float)
steps: list[float] = []


def timed(owner: Any, name: str) -> None:
    """Have a function's time added up in `spent`."""
    real: Callable[..., Any] = getattr(owner, name)
    label = f"{owner.__name__.rpartition('.')[2]}.{name}"

    @functools.wraps(real)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            spent[label] += time.perf_counter() - start

    setattr(owner, name, wrapper)


def measure(arguments: list[str], warm_up: int) -> int:
    """Train with every guard timed; times of the first steps are forgotten."""
    for owner, name in GUARDS + AGREEMENT:
        timed(owner, name)
    real = loop.seed_step
    last, warm = [time.perf_counter()], [False]

    def seed_step(seed: int, step: int, rank: int) -> None:
        now = time.perf_counter()
        steps.append(now - last[0])
        last[0] = now
        if not warm[0] and len(steps) == warm_up:
            warm[0] = True
            spent.clear()
            steps.clear()
        real(seed, step, rank)

    loop.seed_step = seed_step
    return pretrain(arguments)


def main() -> int:
    """Run, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--warm-up", type=int, default=20, help="steps that are not counted")
    options, arguments = parser.parse_known_args()
    status = measure(arguments, options.warm_up)
    if status or dist.rank_from_env():
        return status
    median = statistics.median(steps)
    agreement = spent.pop("dist.sum_over_ranks")
    each = {name: seconds / len(steps) * 1e6 for name, seconds in sorted(spent.items())}
    result = {
        "ranks": dist.world_size_from_env(),
        "steps": len(steps),
        "step_ms_median": round(median * 1e3, 1),
        "guards_us_a_step": {name: round(us, 2) for name, us in each.items()},
        "guards_share_of_a_step": round(sum(each.values()) * 1e-6 / median, 6),
        "agreements_us_a_step": round(agreement / len(steps) * 1e6, 1),
        "versions": provenance.versions(),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    leave(main())
