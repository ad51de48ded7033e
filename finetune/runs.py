"""Fine-tuning runs as processes of their own, started one after the other. Torch-free.

One process decides what to run and starts all ranks of it with the same words. Ranks that each
drew their own values would train different models (transformers#11894); here they can't.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED, UserError
from runtime.signals import StopRequest

_ROOT = Path(__file__).resolve().parent.parent
_OF_A_LAUNCHER = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
_STARTED = b"== started\n"  # in a log: what comes before is of an earlier attempt
_POLL_S = 0.2
_GRACE_S = 60.0  # for the other ranks, once one has failed


def refuse_launcher(command: str) -> None:
    """Raise UserError where this command itself was started as several ranks."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"{command} starts the ranks of its runs itself; call it without a launcher: "
            f"python -m finetune {command} … --ranks {os.environ['WORLD_SIZE']}",
            status=EXIT_BAD_INPUT,
        )


def override(dotted: str, value: Any) -> str:
    """A setting as it stands on a command line; JSON is read there as YAML."""
    return f"{dotted}={json.dumps(value, ensure_ascii=False)}"


def carry_out(
    words: Sequence[str],
    ranks: int,
    log: Path,
    stop: StopRequest,
    ends_early: Callable[[], bool] = lambda: False,
) -> int:
    """`python -m finetune WORDS` on so many ranks of this machine, to its end.

    Returns the exit status, the first that is not 0. What the ranks print goes to `log`.
    ends_early: asked now and then; where it says yes the run saves and leaves with status 75.
    Raises UserError with status 75 where this process was asked to stop, after the run has saved.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        out.write(_STARTED)
        out.flush()
        processes = [
            subprocess.Popen(  # noqa: S603 - this interpreter, our own module
                [sys.executable, "-m", "finetune", *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            for environment in _environments(ranks)
        ]
        try:
            return _follow(processes, stop, ends_early)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()


def _follow(
    processes: list["subprocess.Popen[bytes]"], stop: StopRequest, ends_early: Callable[[], bool]
) -> int:
    is_told, deadline = False, float("inf")
    while any(process.poll() is None for process in processes):
        if not is_told and (stop.check() or ends_early()):
            is_told = True
            for process in processes:
                process.send_signal(signal.SIGTERM)
        if any(process.poll() for process in processes):
            deadline = min(deadline, time.monotonic() + _GRACE_S)
        if time.monotonic() > deadline:
            break  # a rank that waits for one that is gone
        time.sleep(_POLL_S)
    if stop.check():
        raise UserError(
            f"stopped ({stop.reason}); run the same command again to go on", status=EXIT_PREEMPTED
        )
    return next((p.returncode for p in processes if p.returncode), 0)


def _environments(ranks: int) -> list[dict[str, str]]:
    kept = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCHER}
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept["PYTHONPATH"] = os.pathsep.join(paths)
    if ranks == 1:
        return [kept]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    group |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [{**kept, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def last_words(log: Path) -> str:
    """What a run that failed said last: its error, else its last line."""
    said = log.read_bytes().rpartition(_STARTED)[2].decode(errors="replace")
    lines = [line.strip() for line in said.splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if line.startswith("error:")]
    found = (errors or lines or ["it said nothing"])[-1]
    return found.removeprefix("error:").strip()[:300]
