"""`python -m launch COMMAND …`: before, during and after a run.

Each command is a module of its own, imported when it is called for: none waits for another's
packages.
"""

import difflib
import importlib
import sys
from typing import NamedTuple

from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError, command


class Command(NamedTuple):
    """Where a command is, and what it is for."""

    module: str  # with a `main(argv) -> exit status`
    meaning: str


COMMANDS = {
    "check": Command(
        "launch.check.command", "check a config, and tell what its run will take; needs no GPU"
    ),
    "local": Command("launch.cluster.local", "train on everything this machine has"),
    "torchrun": Command("launch.cluster.torchrun", "train here as one of several machines"),
    "ssh": Command("launch.cluster.ssh", "start a run on several hosts, over ssh"),
    "deepspeed": Command("launch.cluster.deepspeed", "the same, by DeepSpeed's runner"),
    "mpi": Command("launch.cluster.mpi", "the same, by OpenMPI's mpirun"),
    "network": Command("launch.cluster.network", "check hosts and measure their network"),
    "slurm": Command("launch.cluster.slurm", "train as a Slurm job, an array or a chain of jobs"),
    "kubernetes": Command("launch.cluster.kubernetes", "train as an indexed Job of Kubernetes"),
    "supervise": Command(
        "launch.supervise_command", "start a training command, and start it again when it fails"
    ),
    "plan": Command("launch.plan.command", "find the best layout for a run, and how far it scales"),
    "scaling": Command("launch.scaling.command", "measure scaling over ranks, stages and models"),
    "report": Command("launch.report.command", "write runs as one HTML page"),
    "schema": Command("launch.schema", "print a config's JSON Schema, for editors"),
}


@command
def main(argv: list[str] | None = None) -> int:
    """Run one of the launch commands."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return EXIT_OK if words else EXIT_BAD_INPUT
    name, *rest = words
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        mend = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
        raise UserError(f"no launch command {name[:80]!r}; {mend}", status=EXIT_BAD_INPUT)
    status: int = importlib.import_module(COMMANDS[name].module).main(rest)
    return status


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {found.meaning}" for name, found in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m launch COMMAND …        (COMMAND --help tells more)", "", *lines]
    )


if __name__ == "__main__":
    sys.exit(main())
