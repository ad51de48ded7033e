"""`python -m launch deepspeed --hostfile F -- CONFIG`: on several hosts, by DeepSpeed's runner.

DeepSpeed starts its launcher on each host with pdsh, or its ranks with OpenMPI. Its quoting is not
relied upon: with pdsh every argument passes a shell of each host (0.19.8).
"""

import argparse
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.cluster import mpi, ssh
from launch.cluster.hosts import (
    check_deepspeed,
    check_environment_file,
    check_folder,
    hosts_text,
    passed_on,
)
from launch.cluster.printing import CommandLine, python_path
from launch.supervise import Limits, Local, Supervisor
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError
from runtime.launcher import HOSTS

PROGRAMS = {"pdsh": ("pdsh", "pdsh"), "openmpi": ("mpirun", "openmpi-bin")}  # and its package
# What DeepSpeed passes on by itself.
_DEEPSPEEDS = ("PYTHON", "UCX", "NCCL")
_ENVIRONMENT_FILE = "DS_ENV_FILE"


def main(argv: Sequence[str]) -> int:
    """Check the hosts and start the run, or print what would run. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m launch deepspeed", description=__doc__)
    ssh.add_arguments(parser)
    parser.add_argument(
        "--launcher", choices=PROGRAMS, default="pdsh", help="what DeepSpeed starts with"
    )
    options = parser.parse_args(argv)
    hosts, run = ssh.read(options)
    words = runner(options.hostfile, hosts, options.master_port, options.launcher)
    words += [for_pdsh(w) for w in run.words] if options.launcher == "pdsh" else run.words
    check_deepspeed(words, os.environ, Path.cwd())
    check_folder(Path.cwd())
    lines = environment_lines(os.environ)
    if options.print:
        # Names alone: a value may be a secret of the user's own file.
        for name in dict.fromkeys(line.partition("=")[0] for line in lines):
            print(f"# goes along: {name}")
        print(CommandLine(ssh.supervised(words), python_path()).text())
        return EXIT_OK
    program, package = PROGRAMS[options.launcher]
    if shutil.which(program) is None:
        raise UserError(
            f"{program} is not on PATH; install it (apt install {package}), or start with "
            "`python -m launch ssh`",
            status=EXIT_BAD_INPUT,
        )
    ssh.ready(hosts, run, options)
    os.environ.update(python_path())
    limits = Limits(options.max_restarts)
    with _environment_file(lines):
        return Supervisor(lambda: Local(words, limits), limits).run()


def runner(hostfile: Path, hosts: Mapping[str, int], port: int, launcher: str) -> list[str]:
    """The words of DeepSpeed's runner before the script."""
    first = next(iter(hosts))
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
    words += ["--master_addr", first, "--master_port", str(port), "--launcher", launcher]
    if len(hosts) == 1:
        words.append("--force_multi")  # else it starts on this machine, whatever the file says
    if launcher == "openmpi":
        # It does not tell the ranks where the first one is.
        told = [f"MASTER_ADDR={first}", f"MASTER_PORT={port}", f"{HOSTS}={hosts_text(hosts)}"]
        more = [*mpi.OPTIONS, *mpi.as_root(), *(word for v in told for word in ("-x", v))]
        words.append(f"--launcher_args={shlex.join(more)}")
    return words


def for_pdsh(word: str) -> str:
    """An argument such that DeepSpeed and the shells behind pdsh make the same word of it again.

    Raises UserError where there is no such way: DeepSpeed puts double quotes around words with
    spaces.
    """
    live = r"[%\n\r\0]" if " " not in word else r'[%$`"\\!\n\r\0]'
    if found := re.search(live, word):
        raise UserError(
            f"{word[:80]!r}: DeepSpeed's pdsh would not pass {found[0]!r} on as it is; write it "
            "into the config, or start with `python -m launch ssh`",
            status=EXIT_BAD_INPUT,
        )
    return word if " " in word else shlex.quote(word)


def environment_lines(environment: Mapping[str, str]) -> list[str]:
    """What must go along and DeepSpeed passes on through a file only, with the user's own lines."""
    found = []
    for folder in (Path(environment.get("HOME", "/")), Path.cwd()):
        file = folder / environment.get(_ENVIRONMENT_FILE, ".deepspeed_env")
        if file.is_file():
            found += [line for line in file.read_text("ascii").splitlines() if line.strip()]
    for name, value in passed_on(environment).items():
        if not name.startswith((*_DEEPSPEEDS, "CUDA_")):  # its launcher chooses the GPUs
            found.append(f"{name}={value}")
    return list(dict.fromkeys(found))


@contextmanager
def _environment_file(lines: Sequence[str]) -> Iterator[None]:
    """A file from which DeepSpeed's runner takes more variables, as long as it may start again."""
    with tempfile.TemporaryDirectory(prefix="ingot-deepspeed-") as folder:
        file = Path(folder) / "environment"
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        check_environment_file(file)
        os.environ[_ENVIRONMENT_FILE] = str(file)
        yield
