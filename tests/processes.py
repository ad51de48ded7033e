"""Start our commands as a user would, as one process or as several ranks."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a rank: no launcher's variables, one thread, our source tree."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in launcher}
    # The environment's own commands (deepspeed, torchrun) come first, whether or not it is active.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **extra}


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(
    arguments: list[str], ranks: int = 1, cwd: Path = ROOT, **extra: str
) -> list[subprocess.Popen[str]]:
    """Start `python ARGUMENTS` as so many ranks of one process group, without a launcher."""
    group = {}
    if ranks > 1:
        group = {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(**group, **_identity(r, ranks), **extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
        )
        for r in range(ranks)
    ]


def _identity(rank: int, ranks: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}


def run(
    arguments: list[str], ranks: int = 1, timeout: float = 240, cwd: Path = ROOT, **extra: str
) -> tuple[int, str]:
    """Run `python ARGUMENTS` to its end; returns the worst exit status and all that was printed."""
    processes = start_ranks(arguments, ranks, cwd, **extra)
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    return max((p.returncode for p in processes), key=abs), "".join(outputs)
