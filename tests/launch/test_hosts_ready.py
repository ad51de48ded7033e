"""What is wrong with a host is told before a run, with its name and the mend; real sshd."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import namespaces
from tests.corpus import prepare_corpus
from tests.namespaces import Cluster
from tests.processes import ROOT
from tests.tiny_run import write_config

pytestmark = pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing()))
NETWORK = [sys.executable, "-m", "launch", "network", "--seconds", "0"]
# The clock of a host, for the programs that load it: 7 s ahead.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    if (!failed && which == CLOCK_REALTIME) now->tv_sec += 7;
    return failed;
}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ready")


@pytest.fixture(scope="module")
def config(root: Path) -> Path:
    data = prepare_corpus(root, documents=60)
    return write_config(root / "run.yaml", root / "runs" / "run", data)


@pytest.fixture(scope="module")
def cluster(root: Path, config: Path) -> Iterator[Cluster]:
    with namespaces.cluster(root, "good", "fine") as made:
        yield made


def hostfile(folder: Path, *names: str) -> str:
    path = folder / "hostfile"
    path.write_text("".join(f"{name} slots=1\n" for name in names))
    return str(path)


def line_of(output: str, host: str) -> str:
    found = [line for line in output.splitlines() if line.startswith(f"  {host}: ")]
    assert len(found) == 1, (host, output)
    return found[0]


def test_good_hosts_are_ready(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    file = hostfile(tmp_path, "good", "fine")
    status, output = cluster.run("good", [*NETWORK, "--hostfile", file, "--", str(config)])
    assert status == 0, output
    assert "2 hosts are ready" in output
    assert "port 29500 free on good" in output
    assert not list(config.parent.glob("runs/.ingot-*"))


def clock_library(folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler for a clock that goes wrong")
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    words = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(words, check=True)
    return library


def other_room(folder: Path) -> Path:
    """A copy of one folder of the source tree, with one more comment in it."""
    copy = folder / "pretrain"
    shutil.copytree(ROOT / "pretrain", copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "train.py").open("a") as file:
        file.write("# one more line\n")
    return copy


def make_bad_hosts(cluster: Cluster, root: Path, data: Path, tmp_path: Path) -> list[str]:
    cluster.add("refused").run("sh", "-c", "kill $(cat /run/sshd.pid)")
    cluster.add("silent").network("ip", "link", "set", "eth0", "down")
    cluster.add("hanging", "ForceCommand sleep 600")
    cluster.add("denied")
    (root / "denied" / "authorized_keys").write_text("")
    cluster.add("stranger")
    known = root / "known_hosts"
    lines = [line for line in known.read_text().splitlines() if "stranger" not in line]
    known.write_text("\n".join([*lines, ""]))
    cluster.add("changed")
    known.write_text(known.read_text().replace("changed,", "").replace("refused,", "changed,"))
    # Not the whole tree: the environment may lie inside of it.
    cluster.add("older").bind(other_room(tmp_path), ROOT / "pretrain")
    other = tmp_path / "other"
    shutil.copytree(data, other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    cluster.add("copied").bind(other, data)
    cluster.add("late", f"SetEnv LD_PRELOAD={clock_library(tmp_path)}")
    empty = tmp_path / "empty"
    empty.mkdir()
    (root / "runs").mkdir(exist_ok=True)
    cluster.add("apart").bind(empty, root / "runs")
    cluster.add("bare").bind(empty, Path(sys.executable).parent)
    cluster.add("variable", "SetEnv NCCL_SOCKET_IFNAME=ib9 NCCL_ALGO=Ring")
    names = ["refused", "silent", "hanging", "denied", "stranger", "changed", "older", "copied"]
    return [*names, "late", "apart", "bare", "variable", "nowhere"]


@pytest.mark.slow
def test_each_bad_host_is_named_with_its_mend(
    cluster: Cluster, config: Path, root: Path, tmp_path: Path
) -> None:
    bad = make_bad_hosts(cluster, root, root / "data", tmp_path)
    file = hostfile(tmp_path, "good", "fine", *bad)
    began = time.monotonic()
    command = [*NETWORK, "--hostfile", file, "--", str(config), "batch.global_batch_size=60"]
    status, output = cluster.run("good", [*command, "batch.micro_batch_size=4"])
    took = time.monotonic() - began
    assert status == 2, output
    assert f"{len(bad)} of {len(bad) + 2} hosts are not ready" in output
    told = {
        "refused": "ssh is refused: no sshd listens on its port; start it there",
        "silent": "no way to it",
        "hanging": "no answer in 20 s",
        "denied": "no key that it accepts without a password; ssh-copy-id denied",
        "stranger": "its host key is not known; connect once by hand and compare it: ssh stranger",
        "changed": "its host key has changed",
        "older": "another version of the source tree",
        "copied": "data is another copy there",
        # Half of the time that an answer takes may be added to the 7 s, or taken from them.
        "late": r"its clock is (6\.[5-9]|7\.[0-5]) s ahead; switch on its time synchronisation",
        "apart": "another folder than on good: all ranks write one checkpoint",
        "bare": "set up the environment under the same path",
        "variable": "NCCL_SOCKET_IFNAME=ib9 fits no network interface there",
        "nowhere": "no machine has this name; correct the host file",
    }
    for host, text in told.items():
        lines = [line for line in output.splitlines() if f"  {host}: " in line]
        assert any(re.search(text, line) for line in lines), f"{host}: {output}"
    assert took < 60, "all are asked at once, and none for longer than 28 s"


def test_a_port_in_use(cluster: Cluster, tmp_path: Path) -> None:
    code = "import socket, time; s = socket.create_server(('', 29777)); print(1); time.sleep(60)"
    taken = cluster.start("good", [sys.executable, "-u", "-c", code])
    try:
        assert taken.stdout is not None
        assert taken.stdout.readline() == "1\n"
        words = [*NETWORK, "--hostfile", hostfile(tmp_path, "good", "fine")]
        status, output = cluster.run("fine", [*words, "--master-port", "29777"])
    finally:
        taken.kill()
    assert status == 2
    assert "port 29777, where ranks meet, cannot be had (Address already in use)" in line_of(
        output, "good"
    )


def test_a_port_behind_a_firewall(cluster: Cluster, tmp_path: Path) -> None:
    """Another address under the first host's name: there nobody listens."""
    names = tmp_path / "hosts"
    names.write_text("127.0.0.1 localhost good\n10.77.0.1 good-too\n10.77.0.2 fine\n")
    cluster.hosts["fine"].bind(names, Path("/etc/hosts"))
    try:
        words = [*NETWORK, "--hostfile", hostfile(tmp_path, "good", "fine")]
        status, output = cluster.run("good", words)
    finally:
        cluster.hosts["fine"].run("umount", "/etc/hosts")
    assert status == 2
    assert "does not reach good:29500 (Connection refused)" in line_of(output, "fine")


def test_one_machine_under_two_names(cluster: Cluster, tmp_path: Path) -> None:
    words = [*NETWORK, "--hostfile", hostfile(tmp_path, "good", "10.77.0.1")]
    status, output = cluster.run("fine", words)
    assert status == 2
    assert "is the same machine as good" in line_of(output, "10.77.0.1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("-oProxyCommand=touch${IFS}marker slots=1\n", "is not a host name"),
        ("node;id slots=1\n", "is not a host name"),
        ("good slots=1\ngood slots=1\n", "hostfile:2: good stands here twice"),
    ],
)
@pytest.mark.parametrize("command", ["ssh", "deepspeed", "mpi", "network"])
def test_bad_host_files(config: Path, tmp_path: Path, command: str, text: str, told: str) -> None:
    (tmp_path / "hostfile").write_text(text)
    words = [sys.executable, "-m", "launch", command, "--hostfile", str(tmp_path / "hostfile")]
    done = subprocess.run(
        [*words, "--", str(config)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
