"""`python -m launch local -- CONFIG`: a run on everything this machine has."""

import argparse
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence

from launch.arguments import counted
from launch.cluster import training
from launch.cluster.printing import CommandLine, python_path
from launch.cluster.torchrun import MAX_RANKS, supervised
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

_LOOPBACK, _PORT = "127.0.0.1", 29500
_NVIDIA_SMI_S = 20.0  # a driver that is being loaded takes some


def main(argv: Sequence[str]) -> int:
    """Start the run, or print what would be. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m launch local", description=__doc__)
    parser.add_argument(
        "--ranks",
        type=counted("ranks", 1, MAX_RANKS),
        help="default: one for each GPU that is visible; one where there is none",
    )
    training.add_arguments(parser)
    options = parser.parse_args(argv)
    gpus = visible_gpus()
    ranks = options.ranks or max(gpus, 1)
    run = training.read(options, ranks)
    if gpus and ranks > gpus and run.config.run.device != "cpu":
        raise UserError(
            f"{ranks} ranks need as many GPUs and {gpus} are visible; lower --ranks, or write "
            "run.device=cpu",
            status=EXIT_BAD_INPUT,
        )
    command = start(run.words, ranks)
    if not options.print:
        command.replace()
    print(command.text())
    return EXIT_OK


def start(script: Sequence[str], ranks: int) -> CommandLine:
    """What starts a script and its arguments here, and starts it again when it fails."""
    found = launcher(ranks)
    return CommandLine(supervised([*found.words, *script]), {**python_path(), **found.environment})


def launcher(ranks: int) -> CommandLine:
    """What stands before a script to start so many ranks of it here.

    Several by DeepSpeed's runner, with which nothing listens beyond this machine: torchrun opens
    its port on all interfaces (SECURITY.md).
    """
    if ranks == 1:
        return CommandLine([sys.executable], {})
    # No host file, also where DeepSpeed's /job/hostfile is: it would start on all those hosts.
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile="]
    words += ["--master_addr", _LOOPBACK, "--master_port", str(free_port())]
    environment: dict[str, str] = {}
    gpus = visible_gpus()
    if ranks > gpus:  # of CPUs
        words += ["--num_gpus", str(ranks)]
    elif ranks < gpus:
        # Not --num_gpus: DeepSpeed ignores CUDA_VISIBLE_DEVICES beside it.
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(chosen.split(",")[:ranks])
    return CommandLine(words, environment)


def free_port() -> int:
    """DeepSpeed's usual port, or another where a second run of this machine has that one."""
    for port in (_PORT, 0):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((_LOOPBACK, port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise UserError(f"no free port on {_LOOPBACK}")


def visible_gpus() -> int:
    """NVIDIA GPUs that a process started here may use, as CUDA_VISIBLE_DEVICES has it.

    Raises UserError where the driver does not answer.
    """
    if shutil.which("nvidia-smi") is None:
        return 0
    command = ["nvidia-smi", "--list-gpus"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"no answer from {' '.join(command)} in {_NVIDIA_SMI_S:.0f} s: the driver hangs; see "
            "dmesg, or hide the GPUs from this run by leaving nvidia-smi off PATH"
        ) from error
    here = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not here:
        return here
    words = [word.strip() for word in chosen.split(",")]
    # CUDA stops at the first that is none.
    none = ("", "-1")
    return next(
        (i for i, w in enumerate(words) if w in none or (w.isdecimal() and int(w) >= here)),
        len(words),
    )
