"""`python -m launch supervise -- COMMAND …`: start a training command again when it fails."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from launch.arguments import counted, positive
from launch.cluster.hosts import check_deepspeed, read_hostfile
from launch.cluster.remote import Remote
from launch.supervise import Limits, Local, Started, Supervisor


def main(argv: Sequence[str]) -> int:
    """Run the command until it is done. Raises UserError."""
    options = _options(argv)
    limits = Limits(options.max_restarts, options.same_step, options.grace)
    check_deepspeed(options.words, os.environ, Path.cwd())
    hosts = read_hostfile(options.hostfile) if options.hostfile else None

    def start() -> Started:
        if hosts is None:
            return Local(options.words, limits)
        return Remote(hosts, options.words, options.master_port, limits)

    return Supervisor(start, limits, until_eof=options.until_eof).run()


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launch supervise", description=__doc__)
    parser.add_argument(
        "--max-restarts",
        type=counted("max-restarts", 0, 1_000_000),
        default=10,
        help="give up after; default 10",
    )
    parser.add_argument(
        "--same-step",
        type=counted("same-step", 1, 1_000_000),
        default=3,
        help="give up after so many failures at one step; default 3",
    )
    parser.add_argument(
        "--grace",
        type=positive,
        default=60.0,
        help="seconds for ranks to end after their launcher has; default 60",
    )
    parser.add_argument(
        "--hostfile", type=Path, help="HOST slots=N a line: torchrun COMMAND on each, over ssh"
    )
    parser.add_argument(
        "--master-port",
        type=counted("master-port", 1, 65535),
        default=29500,
        help="with it; default 29500",
    )
    parser.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="+", metavar="-- COMMAND …", help="what to start")
    return parser.parse_args(argv)
