"""A peer in a process of its own, driven through its pipe."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.rows import Row

_NOT_OURS = ("nanogpt", "trainer", "litgpt")
WORKER = Path(__file__).resolve().parent / "worker.py"


class PeerError(Exception):
    """A peer's process ended, with what it said last."""


class Peer:
    """The driver's end of the pipe."""

    def __init__(self, row: Row, options: dict[str, Any], libraries: Path | None) -> None:
        own = Path(options["folder"]) / f"{row.family}-{row.name}".replace(" ", "-")
        self._log = own.with_suffix(".log").open("w+")
        threads = str(options["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        if row.peer in _NOT_OURS:
            # Set for ours by importing `runtime`; others wait as they do by themselves.
            for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
                environment.pop(name, None)
        # Compile times are those of a machine that has not compiled the same before.
        environment["TORCHINDUCTOR_CACHE_DIR"] = options["cache"] or str(own)
        if libraries and row.peer == "litgpt":
            paths = [os.environ.get("PYTHONPATH", ""), str(libraries)]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        told = {**row._asdict(), **options}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env=environment,
        )
        self._answer()

    def ask(self, order: str) -> dict[str, float]:
        """Send an order and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last is the better message
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise PeerError(self._log.read()[-2000:])
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()


LITGPT = ("litgpt", "lightning", "lightning-utilities", "pytorch-lightning", "torchmetrics")


def install(libraries: Path, packages: tuple[str, ...] = (*LITGPT, "jsonargparse")) -> None:
    """Put packages, unless the first is there, beside our torch and not instead of it.

    Raises subprocess.CalledProcessError.
    """
    if (libraries / packages[0].replace("-", "_")).is_dir():
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, str(libraries), *packages], check=True)
