"""What a host answers before a run starts on it: `python -m launch.cluster.probe`, over ssh.

A question is a line of JSON on its input, an answer a line on its output, with a mark before it:
login shells may print, too. At the end of the input it stops, with all that it started. Standard
library only, as far as possible: what is missing on a host must be told, not stumbled over.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARK = "ingot-probe "
_CONNECT_S = 3.0
_SEEN_S = 4.0  # for a shared folder to show a new file: NFS may take some seconds
_NVIDIA_SMI_S = 10.0
_GPU_QUERY = "--query-gpu=index,memory.used,memory.total"


class Probe:
    """Answers questions about this machine."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._started: list[subprocess.Popen[bytes]] = []

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """What a question asks for, by its name in `ask`."""
        words = {name: value for name, value in question.items() if name != "ask"}
        return dict(getattr(self, f"ask_{question['ask']}")(**words))

    def ask_clock(self) -> dict[str, Any]:
        """Seconds since 1970."""
        return {"time": time.time()}

    def ask_facts(self, files: list[str], data: list[str]) -> dict[str, Any]:
        """The machine, its packages, the source tree, and the run's files and data directories."""
        found: dict[str, Any] = {
            "host": socket.gethostname(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
            "gpus": gpus(),
            "interfaces": interfaces(),
            "addresses": hardware_addresses(),
            "infiniband": _names("/sys/class/infiniband"),
            "environment": network_variables(),
            "problem": "",
        }
        try:
            found |= made_with(files, data)
        except ImportError as error:
            found["problem"] = f"{error} for {sys.executable}"
        return found

    def ask_listen(self, port: int) -> dict[str, Any]:
        """Take the port where ranks will meet."""
        try:
            self._listener = socket.create_server(("", port), backlog=1024)
        except OSError as error:
            return {"problem": _why(error)}
        return {"problem": ""}

    def ask_connect(self, host: str, port: int) -> dict[str, Any]:
        """Try to reach the port of another host."""
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
        except OSError as error:
            return {"problem": _why(error)}
        return {"problem": ""}

    def ask_release(self) -> dict[str, Any]:
        """Give the port back."""
        if self._listener is not None:
            self._listener.close()
        return {}

    def ask_leave(self, path: str) -> dict[str, Any]:
        """Leave a file that others are to see."""
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        except OSError as error:
            return {"problem": _why(error)}
        return {"problem": ""}

    def ask_see(self, path: str) -> dict[str, Any]:
        """Whether a file that another host left is here."""
        deadline = time.monotonic() + _SEEN_S
        while not Path(path).exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return {"seen": Path(path).exists()}

    def ask_remove(self, path: str) -> dict[str, Any]:
        """Remove the file again."""
        Path(path).unlink(missing_ok=True)
        return {}

    def ask_start(self, words: list[str], environments: list[dict[str, str]]) -> dict[str, Any]:
        """Start ranks; what they print goes the way of the answers, and so does their end."""
        for environment in environments:
            process = subprocess.Popen(
                words, env={**os.environ, **environment}, stdin=subprocess.DEVNULL
            )
            self._started.append(process)
            rank = int(environment["RANK"])
            threading.Thread(target=_tell_end, args=(process, rank), daemon=True).start()
        return {}

    def end(self) -> None:
        """Kill what was started."""
        for process in self._started:
            process.kill()


def made_with(files: list[str], data: list[str]) -> dict[str, Any]:
    """Packages, source tree, files and data as this machine has them. Raises ImportError."""
    from data_prep.shards import Shards
    from runtime import provenance
    from runtime.errors import UserError

    broken = {}
    for directory in data:
        try:
            Shards(directory)
        except UserError as error:
            broken[directory] = str(error)
    manifests = [Path(directory) / "manifest.json" for directory in data]
    found = {str(path): provenance.digest([path]) for path in map(Path, files) if path.is_file()}
    found |= {str(path.parent): provenance.digest([path]) for path in manifests if path.is_file()}
    return {
        "packages": provenance.packages(),
        "source": provenance.source(),
        "files": found,
        "broken": broken,
    }


def network_variables() -> dict[str, str]:
    """The variables that NCCL and gloo read, as they are here."""
    return {n: v for n, v in sorted(os.environ.items()) if n.startswith(("NCCL_", "GLOO_"))}


def interfaces() -> list[str]:
    """The network interfaces."""
    return [name for _, name in socket.if_nameindex()]


def hardware_addresses() -> list[str]:
    """What tells this machine's network from that of all others; empty where nothing does."""
    found = []
    for name in interfaces():
        with contextlib.suppress(OSError):
            found.append(Path(f"/sys/class/net/{name}/address").read_text().strip())
    return sorted(address for address in found if address.strip("0:"))


def gpus() -> list[dict[str, int]]:
    """NVIDIA GPUs of this machine with their memory in MiB; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [program, _GPU_QUERY, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_S,
            check=False,
        )
        rows = [re.findall(r"\d+", line) for line in done.stdout.splitlines()]
        return [
            {"index": int(row[0]), "used": int(row[1]), "total": int(row[2])}
            for row in rows
            if len(row) == 3
        ]
    return []


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _names(folder: str) -> list[str]:
    try:
        return sorted(path.name for path in Path(folder).iterdir())
    except OSError:
        return []


def _tell_end(process: "subprocess.Popen[bytes]", rank: int) -> None:
    _print({"kind": "end", "rank": rank, "status": process.wait()})


def _print(answer: dict[str, Any]) -> None:
    # One write: lines of several processes must not mix.
    sys.stdout.write(f"{MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()


def main() -> int:
    """Answer until the input ends."""
    probe = Probe()
    try:
        for line in sys.stdin:
            _print(probe.answer(json.loads(line)))
    finally:
        probe.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
