"""What launchers tell their ranks, in the words of each."""

import base64
import json
import subprocess
import sys

import pytest

from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.launcher import HOSTS, adopt_mpi, hosts_of_ranks
from tests.processes import ROOT, environment

MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_openmpis_numbers_become_ours() -> None:
    variables = {**MPI, "MASTER_ADDR": "node1"}
    adopt_mpi(variables)
    ours = {name: variables[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    assert ours == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert variables["LOCAL_WORLD_SIZE"] == "2"


def test_other_launchers_go_first() -> None:
    variables = {**MPI, "RANK": "0", "WORLD_SIZE": "1"}
    adopt_mpi(variables)
    assert (variables["RANK"], variables["WORLD_SIZE"]) == ("0", "1")


def test_mpirun_without_a_place_to_meet_is_refused() -> None:
    with pytest.raises(UserError, match="python -m launch mpi") as caught:
        adopt_mpi(dict(MPI))
    assert caught.value.status == EXIT_BAD_INPUT
    adopt_mpi({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})  # one machine meets on loopback
    with pytest.raises(UserError, match="not numbers"):
        adopt_mpi({**MPI, "OMPI_COMM_WORLD_SIZE": "4; id", "MASTER_ADDR": "node1"})


def test_hosts_of_ranks() -> None:
    assert hosts_of_ranks({HOSTS: "a:2,b:1"}) == ["a", "a", "b"]
    assert hosts_of_ranks({HOSTS: "nonsense"}) == []


def test_hosts_from_deepspeeds_launcher() -> None:
    """They stand on the command line of the process that started the rank, and nowhere else."""
    world = base64.urlsafe_b64encode(json.dumps({"a": [0, 1], "b": [0]}).encode()).decode()
    rank = "from runtime.launcher import hosts_of_ranks; print(hosts_of_ranks())"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"
    for option, told in (
        (f"--world_info={world}", "['a', 'a', 'b']"),
        ("--world_info=bad", "[]"),
        ("--x", "[]"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", parent, option],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == told, done.stderr
