"""Host files and what goes over ssh: read strictly, quoted once, run without a local shell.

DeepSpeed's launcher takes `-oProxyCommand=…` for a host name and expands `$(…)` in exported values
(0.19.8). What it would read is checked here before it starts.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.errors import EXIT_BAD_INPUT, UserError

HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What neither a shell nor DeepSpeed's own quoting gives a meaning.
_VALUE = re.compile(r"[\w@%+=:,./ -]*", re.ASCII)
_PLAIN_PATH = re.compile(r"[\w@+=:,./-]+", re.ASCII)
_SLOTS = re.compile(r"slots=([0-9]{1,4})")
MAX_BYTES = 1 << 20
MAX_HOST_LENGTH = 253  # RFC 1035
CONNECT_S = 10  # for ssh to reach a host
# No others are passed on: secrets would stand on a command line.
PASSED_ON = ("CUDA_", "GLOO_", "INGOT_HOSTS", "NCCL_", "OMP_", "PYTHONPATH", "UCX_")
_DEFAULT_HOSTFILE = "/job/hostfile"  # DeepSpeed's


def read_hostfile(path: Path) -> dict[str, int]:
    """Host → slots, in the order of the file: lines `HOST slots=N`, and comments after `#`.

    Raises UserError naming the line.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        where = f"{path}:{number}"
        slots = _SLOTS.fullmatch(words[1]) if len(words) == 2 else None
        if slots is None or int(slots[1]) == 0:
            raise _refused(f"{where}: expected HOST slots=N, got {line[:80]!r}")
        check_host(words[0], where)
        if words[0] in found:
            raise _refused(f"{where}: {words[0]} stands here twice")
        found[words[0]] = int(slots[1])
    if not found:
        raise _refused(f"{path}: no hosts; write one a line: HOST slots=N")
    return found


def check_host(name: str, where: str) -> None:
    """Refuse what is no host name: an option of ssh's, a command, a word of another alphabet."""
    if len(name) > MAX_HOST_LENGTH or not HOST.fullmatch(name):
        raise _refused(f"{where}: {name[:80]!r} is not a host name")


def check_folder(path: Path) -> None:
    """Refuse a working folder that DeepSpeed or mpirun would hand to a shell without quotes."""
    if not _PLAIN_PATH.fullmatch(str(path)):
        raise _refused(
            f"{str(path)[:200]!r}: the launchers pass the working folder through a shell; start "
            "from one with letters, digits and @+=:,./-_ in its path"
        )


def check_environment_file(path: Path) -> None:
    """Refuse a `.deepspeed_env` whose lines are not NAME=VALUE, or that a shell would expand."""
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, equals, value = line.strip().partition("=")
        if not (equals and _NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise _refused(
                f"{path}:{number}: expected NAME=VALUE of letters, digits and @%+=:,./- in the "
                f"value, got {line[:80]!r}"
            )


def check_deepspeed(command: Sequence[str], environment: Mapping[str, str], here: Path) -> None:
    """Check what the launcher of a `deepspeed` command would read. Raises UserError."""
    if Path(command[0]).name != "deepspeed" and "deepspeed.launcher.runner" not in command:
        return
    hostfile = Path(_option(command, "-H", "--hostfile") or _DEFAULT_HOSTFILE)
    if (here / hostfile).exists():
        read_hostfile(here / hostfile)
    for short, name in (("-i", "--include"), ("-e", "--exclude"), ("-", "--master_addr")):
        for node in filter(None, (_option(command, short, name) or "").split("@")):
            host, _, slots = node.partition(":")
            check_host(host, name)
            if not re.fullmatch(r"[0-9,]*", slots):
                raise _refused(f"{name}: {slots[:80]!r} are no slots")
    for folder in (here, Path(environment.get("HOME", "/"))):
        file = folder / environment.get("DS_ENV_FILE", ".deepspeed_env")
        if file.is_file():
            check_environment_file(file)


def hosts_text(hosts: Mapping[str, int]) -> str:
    """Hosts and their slots, as ranks read them (`runtime/launcher.py`): `node1:8,node2:8`."""
    return ",".join(f"{host}:{slots}" for host, slots in hosts.items())


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables that go along to other hosts."""
    return {n: v for n, v in sorted(environment.items()) if n.startswith(PASSED_ON)}


def ssh_command(
    host: str, argv: Sequence[str], environment: Mapping[str, str], folder: Path
) -> list[str]:
    """The words that run `argv` in a folder of a host, with those variables that may be passed on.

    The remote shell, a POSIX one, gets a single string in which every word is quoted. Raises
    UserError.
    """
    check_host(host, "ssh")
    variables = [f"{name}={value}" for name, value in passed_on(environment).items()]
    words = ["env", "-C", str(folder), *variables, *argv]
    if any("\0" in word for word in words) or "=" in argv[0]:
        raise _refused(f"ssh: {argv[0][:80]!r} … cannot be started on another machine")
    # A lost connection is found after three of these; how the other end finds out: lifeline.py.
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"]
    options += ["-o", "ServerAliveInterval=10"]
    return ["ssh", *options, "--", host, shlex.join(words)]


def _option(command: Sequence[str], short: str, name: str) -> str | None:
    """The value of an option in each way that argparse reads it, the last one given."""
    found = None
    for word, following in zip(command, [*command[1:], ""], strict=True):
        key, equals, value = word.partition("=")
        if len(key) > 3 and name.startswith(key):  # argparse takes abbreviations
            found = value if equals else following
        elif len(short) == 2 and word.startswith(short):
            found = word[2:].removeprefix("=") or following
    return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refused(f"{path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise _refused(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise _refused(f"{path}: not ASCII at byte {error.start}") from error
    if not text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable():
        raise _refused(f"{path}: control characters")
    return text


def _refused(message: str) -> UserError:
    return UserError(message, status=EXIT_BAD_INPUT)
