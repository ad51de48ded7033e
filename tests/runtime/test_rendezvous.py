"""A rank that does not come is named with its host, long before the others give up."""

import time

import pytest

from runtime import dist, rendezvous
from runtime.errors import UserError
from runtime.launcher import HOSTS
from runtime.rendezvous import Meeting, who_is_missing
from tests.processes import free_port


def test_who_is_missing_by_the_launchers_hosts() -> None:
    come = {0: ("node1", 0, 2), 1: ("node1", 1, 2), 2: ("node2", 0, 2)}
    hosts = ["node1", "node1", "node2", "node2", "node3", "node3"]
    told = who_is_missing(come, 6, hosts)
    assert told.startswith("of 6 ranks 3 have not come: rank 3 on node2; 4, 5 on node3; ")


def test_who_is_missing_by_arithmetic() -> None:
    """Rank 3 is the second of two on the machine of rank 2; of 4 and 5 no neighbour has come."""
    come = {0: ("node1", 0, 2), 1: ("node1", 1, 2), 2: ("node2", 0, 2)}
    told = who_is_missing(come, 6, [])
    assert "rank 3 on node2; 4, 5 on a machine other than node1, node2;" in told


def test_slurms_nodes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    told = who_is_missing({0: ("node1", 0, 1)}, 2, [])
    assert "rank 1 on a machine other than node1 (of node[1-2]);" in told


def test_rank_0_says_who_is_missing_and_goes_on_waiting(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert rendezvous._TELL_AFTER_S <= 25
    monkeypatch.setattr(rendezvous, "_TELL_AFTER_S", 0.3)
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        HOSTS: "here:1,gamma:1",
    }.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"after 2 s: of 2 .* rank 1 on gamma"):
        Meeting(0, 2, 2.0, lambda: False).wait_for_all()
    assert time.monotonic() - began >= 2
    told = capfd.readouterr().err
    assert "warning: of 2 ranks 1 has not come: rank 1 on gamma; see what was printed" in told
    assert told.count("has not come") == 1


def test_a_rank_that_waits_for_rank_0_says_where(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendezvous, "_TELL_AFTER_S", 0.1)
    port = str(free_port())
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="no process group after 1 s: nobody answers"):
        Meeting(1, 2, 1.0, lambda: False)
    assert f"nobody answers at 127.0.0.1:{port}: is rank 0 up there" in capfd.readouterr().err


def test_the_host_of_a_rank_that_differs_is_told() -> None:
    def text(host: str, value: str) -> str:
        return f'{{"host": "{host}", "what": {{"source": "{value}"}}}}'

    told = dist._first_difference([text("node1", "a"), text("node1", "a"), text("node2", "b")])
    assert told.startswith("rank 2 on node2 was started with something else than rank 0: source: b")
    assert dist._first_difference([text("n", "a"), text("n", "b")]).startswith("rank 1 was started")
    assert dist._first_difference([text("node1", "a"), text("node2", "a")]) == ""
