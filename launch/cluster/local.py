"""`python -m launch local -- CONFIG`: a run on everything this machine has."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from launch.cluster import training
from launch.cluster.printing import CommandLine, python_path
from launch.cluster.torchrun import MAX_RANKS, agent, supervised
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError


def main(argv: Sequence[str]) -> int:
    """Start the run, or print what would be. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m launch local", description=__doc__)
    parser.add_argument(
        "--ranks",
        type=training.counted("ranks", 1, MAX_RANKS),
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
    """What starts a script and its arguments here."""
    launcher = agent(1, ranks) if ranks > 1 else [sys.executable]
    return CommandLine(supervised([*launcher, *script]), python_path())


def visible_gpus() -> int:
    """NVIDIA GPUs that a process started here may use, as CUDA_VISIBLE_DEVICES has it."""
    if shutil.which("nvidia-smi") is None:
        return 0
    done = subprocess.run(  # its words are fixed
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    here = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not here:
        return here
    words = [word.strip() for word in chosen.split(",")]
    # CUDA stops at the first that is none.
    return next((i for i, word in enumerate(words) if word in ("", "-1")), len(words))
