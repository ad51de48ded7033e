"""A run over two hosts, by every launcher, trains what one machine trains; a host that dies is
named."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.records import read_metrics
from tests import namespaces
from tests.corpus import prepare_corpus
from tests.namespaces import Cluster
from tests.processes import run
from tests.tiny_run import write_config

_WHY = namespaces.missing("pdsh", "mpirun")
pytestmark = pytest.mark.skipif(_WHY is not None, reason=str(_WHY))
LAUNCH = [sys.executable, "-m", "launch"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def data(root: Path) -> Path:
    return prepare_corpus(root, documents=60)


@pytest.fixture(scope="module")
def expected(root: Path, data: Path) -> list[float]:
    """The losses of two ranks on one machine."""
    config = write_config(root / "one.yaml", root / "one", data)
    status, output = run(["launch/pretrain.sh", str(config)], ranks=2)
    assert status == 0, output
    found = losses(root / "one")
    assert len(found) == 12
    return found


@pytest.fixture(scope="module")
def cluster(root: Path) -> Iterator[Cluster]:
    with namespaces.cluster(root, "alpha", "beta") as made:
        yield made


def losses(run_dir: Path) -> list[float]:
    records = read_metrics(run_dir / "metrics.jsonl")
    return [record["loss"] for record in records if "loss" in record]


def hostfile(folder: Path, *names: str) -> str:
    path = folder / "hostfile"
    path.write_text("".join(f"{name} slots=1\n" for name in names))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "deepspeed --hostfile {hosts} launch/pretrain.sh {config}",
        "launch deepspeed --hostfile {hosts} -- {config}",
        pytest.param(
            "launch deepspeed --launcher openmpi --hostfile {hosts} -- {config}",
            marks=pytest.mark.nightly,
        ),
        "launch ssh --hostfile {hosts} -- {config}",
        "launch mpi --hostfile {hosts} -- {config}",
    ],
)
def test_two_hosts_train_what_one_does(
    cluster: Cluster, expected: list[float], data: Path, tmp_path: Path, command: str
) -> None:
    config = write_config(tmp_path / "run.yaml", tmp_path / "run", data)
    filled = command.format(hosts=hostfile(tmp_path, "alpha", "beta"), config=config)
    words = filled.split()
    words = [*LAUNCH, *words[1:]] if words[0] == "launch" else words
    status, output = cluster.run("alpha", words)
    assert status == 0, output
    assert "2 × cpu" in output
    assert losses(tmp_path / "run") == expected


@pytest.mark.parametrize("command", ["ssh", "deepspeed", "mpi"])
def test_print_shows_it_and_starts_nothing(
    cluster: Cluster, data: Path, tmp_path: Path, command: str
) -> None:
    config = write_config(tmp_path / "run.yaml", tmp_path / "run", data)
    words = [*LAUNCH, command, "--hostfile", hostfile(tmp_path, "alpha", "nowhere"), "--print"]
    status, output = cluster.run(
        "alpha", [*words, "--", str(config), "run.name=x"], NCCL_DEBUG="WARN", HF_TOKEN="secret"
    )
    assert status == 0, output
    assert "run.name=x" in output
    assert "alpha" in output or "hostfile" in output
    assert "NCCL_DEBUG" in output or command == "deepspeed"  # which passes it on by itself
    assert "secret" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["power", pytest.param("link", marks=pytest.mark.nightly)])
def test_a_host_that_dies_is_named(cluster: Cluster, data: Path, tmp_path: Path, way: str) -> None:
    victim = cluster.add(f"victim-{way}")
    config = write_config(tmp_path / "run.yaml", tmp_path / "run", data, steps=100000)
    words = [*LAUNCH, "ssh", "--hostfile", hostfile(tmp_path, "alpha", victim.name)]
    process = cluster.start(
        "alpha", [*words, "--max-restarts", "0", "--", str(config), "evaluate.every_steps=0"]
    )
    try:
        deadline = time.monotonic() + 60
        while len(losses(tmp_path / "run")) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        if way == "power":
            victim.end()
        else:
            victim.network("ip", "link", "set", "eth0", "down")
        began = time.monotonic()
        output = process.communicate(timeout=100)[0]
    finally:
        process.kill()
    assert process.returncode == 1, output
    assert f"supervise: {victim.name}: the connection was lost" in output
    # ssh finds a lost link after 30 s, and the others are given 15 s.
    assert time.monotonic() - began < (45 if way == "power" else 75)
    assert str(config) not in cluster.hosts["alpha"].run("ps", "ax")


@pytest.mark.slow
def test_a_rank_that_never_arrives_is_named(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    """Where nothing asked the hosts before: stock `deepspeed --hostfile`, and ssh refusing."""
    closed = cluster.add("closed", "AllowUsers nobody")
    config = write_config(tmp_path / "run.yaml", tmp_path / "run", data)
    file = hostfile(tmp_path, "alpha", closed.name)
    words = ["deepspeed", "--hostfile", file, "launch/pretrain.sh", str(config)]
    status, output = cluster.run("alpha", [*words, "health.start_timeout_s=17"])
    assert status != 0
    assert "warning: of 2 ranks 1 has not come: rank 1 on closed; see what was printed" in output
    assert "error: no process group after 17 s: of 2 ranks 1 has not come: rank 1 on cl" in output


def test_arguments_pass_pdsh_as_they_are(tmp_path: Path) -> None:
    """Through DeepSpeed's own treatment, the real pdsh and the shell of a host."""
    from deepspeed.launcher.multinode_runner import PDSHRunner

    from launch.cluster.deepspeed import for_pdsh
    from runtime.errors import UserError

    if shutil.which("pdsh") is None:
        pytest.skip("needs pdsh")
    ssh = tmp_path / "ssh"
    # As ssh does: what follows the host, put together with spaces, is for its shell.
    ssh.write_text(
        '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nshift\nexec sh -c "$*"\n'
    )
    ssh.chmod(0o700)
    words = ["run.name=a;touch marker", "a{b;c}", "x=$(touch marker)", "optim={lr: 1e-3}", "a'b"]
    words += ["a`id`", "a&b", "a|b", "*", "~", "#x", '"', "a\\b", "data.train=[a, b]", "a!b", "é"]
    taken = []
    for word in words:
        try:
            for_pdsh(word)
            taken.append(word)
        except UserError:
            continue
    assert len(taken) >= len(words) - 1  # the one with both a space and a `$` or `;`
    runner = PDSHRunner.__new__(PDSHRunner)
    runner.args = type("Arguments", (), {"user_args": [for_pdsh(word) for word in taken]})
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    script = tmp_path / "show.py"
    script.write_text(show)
    command = ["pdsh", "-S", "-N", "-w", "one,two", sys.executable, str(script)]
    done = subprocess.run(
        [*command, *runner.parse_user_args()],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PDSH_RCMD_TYPE": "ssh", "PYTHONUTF8": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [taken, taken], done.stderr
    assert not (tmp_path / "marker").exists()
