"""`python -m launch torchrun -- CONFIG`: this machine's part of a run, by torchrun."""

import argparse
import sys
from collections.abc import Sequence

from launch.arguments import counted
from launch.cluster import training
from launch.cluster.hosts import check_host
from launch.cluster.printing import CommandLine, python_path
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

PORT = 29400  # torchrun's own
MAX_NODES = 16_384
MAX_RANKS = 64  # of one machine


def supervised(words: Sequence[str]) -> list[str]:
    """The words that start a launcher again when it fails."""
    return [sys.executable, "-m", "launch", "supervise", "--", *words]


def agent(nodes: int, ranks: int, *, endpoint: str = "", run_id: str = "") -> list[str]:
    """torchrun's words for a machine with so many ranks; the same on every machine of the run.

    `endpoint`: HOST:PORT where several machines meet.
    """
    words = [sys.executable, "-m", "torch.distributed.run"]
    words += ["--nnodes", str(nodes), "--nproc-per-node", str(ranks)]
    if nodes == 1 and not endpoint:
        return [*words, "--standalone"]
    return [*words, "--rdzv-id", run_id, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]


def main(argv: Sequence[str]) -> int:
    """Start this machine's ranks, or print what would be. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m launch torchrun",
        description=__doc__,
        epilog="Start the same command on every machine, within 10 minutes of one another.",
    )
    parser.add_argument("--nodes", type=counted("nodes", 1, MAX_NODES), default=1, help="machines")
    parser.add_argument(
        "--gpus-per-node",
        type=counted("gpus-per-node", 1, MAX_RANKS),
        required=True,
        help="ranks on each; on CPUs, too",
    )
    parser.add_argument(
        "--rdzv-endpoint",
        metavar="HOST[:PORT]",
        help=f"one of the machines, where all meet; default port {PORT}",
    )
    training.add_arguments(parser)
    options = parser.parse_args(argv)
    if options.nodes > 1 and not options.rdzv_endpoint:
        raise UserError(
            f"{options.nodes} machines need a place to meet; add --rdzv-endpoint HOST:{PORT}, "
            "one of them",
            status=EXIT_BAD_INPUT,
        )
    endpoint = check_endpoint(options.rdzv_endpoint) if options.rdzv_endpoint else ""
    run = training.read(options, options.nodes * options.gpus_per_node)
    words = agent(
        options.nodes, options.gpus_per_node, endpoint=endpoint, run_id=run.config.run.name
    )
    command = CommandLine(supervised([*words, *run.words]), python_path())
    if not options.print:
        command.replace()
    if options.nodes > 1:
        print(f"# on each of the {options.nodes} machines, in the same folder:")
    print(command.text())
    return EXIT_OK


def check_endpoint(text: str) -> str:
    """HOST or HOST:PORT with its port. Raises UserError."""
    host, colon, port = text.partition(":")
    check_host(host, "--rdzv-endpoint")
    port = port if colon else str(PORT)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(
            f"--rdzv-endpoint: expected HOST:PORT with a port of 1 to 65535, got {text[:80]!r}",
            status=EXIT_BAD_INPUT,
        )
    return f"{host}:{port}"
