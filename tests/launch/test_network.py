"""`python -m launch network` on real networks: a slow host and a dead one are named."""

import re
import sys
import time
from pathlib import Path

import pytest

from tests import namespaces
from tests.processes import free_port, run

NETWORK = [sys.executable, "-m", "launch", "network"]
_WHY = namespaces.missing("tc")
needs_namespaces = pytest.mark.skipif(_WHY is not None, reason=str(_WHY))


def hostfile(folder: Path, *names: str) -> str:
    path = folder / "hostfile"
    path.write_text("".join(f"{name} slots=1\n" for name in names))
    return str(path)


def test_on_this_machine_alone() -> None:
    status, output = run(
        ["-m", "launch", "network", "--seconds", "3", "--master-port", str(free_port())],
        NCCL_DEBUGG="INFO",
    )
    assert status == 0, output
    assert "NCCL_DEBUGG is not a variable of NCCL or gloo; did you mean NCCL_DEBUG?" in output
    rows = [line.split() for line in output.splitlines() if line.startswith("all-reduce of")]
    assert [row[2] for row in rows[:2]] == ["8", "64"]
    for row in rows:  # two ranks: the bus carries what the algorithm moves
        assert row[8] == row[11]


@needs_namespaces
@pytest.mark.slow
def test_cut_off_slow_and_dead_hosts_are_named(tmp_path: Path) -> None:
    with namespaces.cluster(tmp_path, "alpha", "beta", "gamma") as cluster:
        file = hostfile(tmp_path, "alpha", "beta", "gamma")
        words = [*NETWORK, "--hostfile", file]
        # Two that do not see one another, though both see the first: as behind a firewall.
        cluster.hosts["beta"].network("ip", "route", "add", "blackhole", "10.77.0.3/32")
        status, output = cluster.run("alpha", words)
        assert status == 1, output
        assert "error: no connection between hosts: beta → gamma, gamma → beta; open all" in output
        cluster.hosts["beta"].network("ip", "route", "delete", "blackhole", "10.77.0.3/32")

        # The others, too: what a busy machine's own cores manage differs from host to host.
        for name, rate in (("alpha", "400mbit"), ("beta", "400mbit"), ("gamma", "50mbit")):
            limit = ["rate", rate, "burst", "64kb", "latency", "400ms"]
            cluster.hosts[name].network("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *limit)
        gamma = cluster.hosts["gamma"]
        status, output = cluster.run("alpha", [*words, "--seconds", "2"])
        assert status == 1, output
        # 50 Mbit/s are 6.25 MB/s; a busy machine may not manage them.
        assert re.search(r"warning: gamma is slow: it sends [4-6] MB/s", output), output
        assert "alpha is slow" not in output
        assert "beta is slow" not in output

        process = cluster.start("alpha", [*words, "--seconds", "60"])
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("all-reduce of"):
                break
        gamma.network("ip", "link", "set", "eth0", "down")
        began = time.monotonic()
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 1
        assert "error: gamma was lost in all-reduce of" in output
        assert time.monotonic() - began < 45
