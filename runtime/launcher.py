"""What the launcher of a run tells its ranks, whichever it is: their numbers, and their hosts.

torchrun and DeepSpeed set RANK, WORLD_SIZE and LOCAL_RANK; OpenMPI has names of its own.
Torch-free.
"""

import base64
import json
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from runtime.errors import EXIT_BAD_INPUT, UserError

HOSTS = "INGOT_HOSTS"  # environment variable: `node1:8,node2:8`, in the order of ranks
_OPENMPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}


def adopt_mpi(environment: MutableMapping[str, str] | None = None) -> None:
    """Where mpirun started this process: set the variables that torch's launchers would have set.

    Raises UserError where ranks are on several machines and none is named as the first.
    """
    variables = os.environ if environment is None else environment
    if "RANK" in variables or _OPENMPI["RANK"] not in variables:
        return
    found = {name: variables.get(theirs, "") for name, theirs in _OPENMPI.items()}
    if not all(value.isdecimal() for value in found.values()):
        raise UserError(f"OpenMPI's variables are not numbers: {found}", status=EXIT_BAD_INPUT)
    if found["LOCAL_WORLD_SIZE"] != found["WORLD_SIZE"] and "MASTER_ADDR" not in variables:
        raise UserError(
            "mpirun on several machines does not say which is the first: start with "
            "`python -m launch mpi`, or add -x MASTER_ADDR=HOST of rank 0",
            status=EXIT_BAD_INPUT,
        )
    variables.update(found)


def hosts_of_ranks(environment: Mapping[str, str] | None = None) -> list[str]:
    """The host of every rank, in their order; empty where the launcher does not tell."""
    variables = os.environ if environment is None else environment
    told = variables.get(HOSTS) or _deepspeed_hosts(os.getppid())
    found = [word.rpartition(":") for word in told.split(",") if word]
    if not all(slots.isdecimal() for _, _, slots in found):
        return []
    return [host for host, _, slots in found for _ in range(int(slots))]


def _deepspeed_hosts(pid: int) -> str:
    """As HOSTS, from the command line of DeepSpeed's launcher; it tells its ranks nothing."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    encoded = next((w for w in words if re.fullmatch(r"--world_info=[\w=-]+", w, re.ASCII)), "")
    try:
        world = json.loads(base64.urlsafe_b64decode(encoded.partition("=")[2]) or "{}")
        return ",".join(f"{host}:{len(slots)}" for host, slots in world.items())
    except (ValueError, AttributeError, TypeError):
        return ""
