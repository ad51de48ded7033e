"""`python -m launch ssh --hostfile F -- CONFIG`: a run on several hosts, by our own supervisor.

torchrun on each host under a supervisor of its own, over ssh; one supervisor here, which starts all
of them again when one fails.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.arguments import counted
from launch.cluster import preflight, training
from launch.cluster.hosts import read_hostfile
from launch.cluster.printing import quoted
from launch.cluster.remote import Remote, host_commands
from launch.supervise import Limits, Supervisor
from runtime.errors import EXIT_OK

PORT = 29500  # torch's own


def main(argv: Sequence[str]) -> int:
    """Check the hosts and start the run, or print what would run. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m launch ssh", description=__doc__)
    add_arguments(parser)
    options = parser.parse_args(argv)
    hosts, run = read(options)
    limits = Limits(options.max_restarts)
    if options.print:
        for host, command in host_commands(hosts, run.words, options.master_port, limits).items():
            print(f"# {host}\n{' '.join(map(quoted, command))}")
        return EXIT_OK
    ready(hosts, run, options)
    return Supervisor(lambda: Remote(hosts, run.words, options.master_port, limits), limits).run()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words that all ways of starting on several hosts have in common."""
    parser.add_argument(
        "--hostfile", type=Path, required=True, help="HOST slots=N a line: where ranks run"
    )
    parser.add_argument(
        "--master-port",
        type=counted("master-port", 1, 65535),
        default=PORT,
        help=f"of the first host, where ranks meet; default {PORT}",
    )
    parser.add_argument("--max-restarts", type=int, default=10, help="give up after; default 10")
    parser.add_argument(
        "--no-preflight", action="store_true", help="do not ask the hosts whether they are ready"
    )
    training.add_arguments(parser)


def supervised(words: Sequence[str]) -> list[str]:
    """The command, started again when it fails."""
    return [sys.executable, "-m", "launch", "supervise", "--", *words]


def read(options: argparse.Namespace) -> tuple[dict[str, int], training.Training]:
    """The hosts and what is to run on them. Raises UserError."""
    hosts = read_hostfile(options.hostfile)
    return hosts, training.read(options, sum(hosts.values()))


def ready(hosts: dict[str, int], run: training.Training, options: argparse.Namespace) -> None:
    """Ask the hosts whether they are ready for the run. Raises UserError."""
    if not options.no_preflight:
        found = preflight.require_ready(hosts, preflight.wants(run), options.master_port)
        preflight.tell(found, options.master_port, next(iter(hosts)))
