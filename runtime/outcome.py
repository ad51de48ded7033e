"""What a rank tells the supervisor that started it: that it is there, where it trains, its end.

Launchers do not pass exit statuses on faithfully: torchrun makes 1 of every failure, DeepSpeed's
runner makes 0 of a launcher that was killed. So ranks write theirs into a directory that the
supervisor made for this start. Torch-free; does nothing where there is no supervisor.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

DIRECTORY = "INGOT_SUPERVISOR"  # environment variable

_told: dict[str, Any] = {}


def has_told(name: str) -> bool:
    """Whether this rank has told so, or would have if there were a supervisor."""
    return name in _told


def tell(**values: Any) -> None:
    """Add to what the supervisor knows of this rank, such as `run_dir` or `status`."""
    _told.update(values)
    directory = os.environ.get(DIRECTORY)
    if not directory:
        return
    path = Path(directory) / f"rank_{int(os.environ.get('RANK', '0')):05d}.json"
    with contextlib.suppress(OSError):  # a supervisor that has gone, or a full disk
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({**_told, "pid": os.getpid()}), encoding="utf-8")
        temporary.replace(path)


def told(directory: Path) -> dict[int, dict[str, Any]]:
    """What the ranks of this machine have told, by rank."""
    found = {}
    for path in directory.glob("rank_*.json"):
        with contextlib.suppress(OSError, ValueError):
            found[int(path.stem.removeprefix("rank_"))] = json.loads(path.read_text("utf-8"))
    return found
