"""`python -m launch mpi --hostfile F -- CONFIG`: a run on several hosts, by OpenMPI's mpirun.

Only to start the ranks, which then find one another as with every other launcher: no MPI library is
called, mpi4py is not needed.
"""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.cluster import ssh
from launch.cluster.hosts import CONNECT_S, check_folder, hosts_text, passed_on
from launch.cluster.printing import CommandLine, python_path
from launch.supervise import Limits, Local, Supervisor
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError
from runtime.launcher import HOSTS

# A rank has threads of its own: OpenMPI would bind each to one core.
OPTIONS = ("--map-by", "slot", "--bind-to", "none")


def main(argv: Sequence[str]) -> int:
    """Check the hosts and start the run, or print what would run. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m launch mpi", description=__doc__)
    ssh.add_arguments(parser)
    options = parser.parse_args(argv)
    hosts, run = ssh.read(options)
    check_folder(Path.cwd())
    variables = environment(hosts, options.master_port)
    words = [*mpirun(options.hostfile, hosts, variables), sys.executable, "-u", *run.words]
    if options.print:
        print(CommandLine(ssh.supervised(words), variables).text())
        return EXIT_OK
    if shutil.which("mpirun") is None:
        raise UserError(
            "mpirun is not on PATH; install it (apt install openmpi-bin), or start with "
            "`python -m launch ssh`",
            status=EXIT_BAD_INPUT,
        )
    ssh.ready(hosts, run, options)
    os.environ.update(variables)
    limits = Limits(options.max_restarts)
    return Supervisor(lambda: MpiRun(words, limits), limits).run()


def environment(hosts: Mapping[str, int], port: int) -> dict[str, str]:
    """The variables that all ranks get, beside OpenMPI's own."""
    meeting = {"MASTER_ADDR": next(iter(hosts)), "MASTER_PORT": str(port)}
    return {**passed_on(os.environ), **python_path(), **meeting, HOSTS: hosts_text(hosts)}


def mpirun(hostfile: Path, hosts: Mapping[str, int], variables: Mapping[str, str]) -> list[str]:
    """The words of mpirun before the program."""
    words = ["mpirun", "--hostfile", str(hostfile), "-n", str(sum(hosts.values())), *OPTIONS]
    words += [*as_root(), "--wdir", str(Path.cwd())]
    words += ["--mca", "plm_rsh_args", f"-o BatchMode=yes -o ConnectTimeout={CONNECT_S}"]
    return [*words, *(word for name in variables for word in ("-x", name))]


def as_root() -> list[str]:
    """OpenMPI refuses to run as root, as in a container, unless it is told to."""
    return ["--allow-run-as-root"] if os.geteuid() == 0 else []


class MpiRun(Local):
    """mpirun on this machine, with ranks here and elsewhere."""

    def stop(self, number: int) -> None:
        """As for every launcher; where no rank is here, through mpirun.

        mpirun passes SIGUSR1 on, with which ranks save and leave. At SIGTERM it would kill them
        after a second.
        """
        super().stop(number if self.has_ranks() else signal.SIGUSR1)
