"""Hosts that are Linux namespaces: own addresses, names, processes and sshd on one machine.

Nothing of this machine changes: the files of each host are mounted over in its own mount
namespace, and all of it goes when its first process is killed.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.processes import ROOT, environment

PROGRAMS = ("unshare", "nsenter", "ip", "mount", "ssh", "ssh-keygen", "sshd")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_NETWORK = ("GLOO_", "NCCL_", "UCX_", "OMPI_", "PMIX_", "PDSH_")
_KEPT = ("--net", "--mount", "--uts", "--pid")
_SSHD = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PidFile /run/sshd.pid
{more}
"""
_SSH = """\
Host *
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""


def missing(*programs: str) -> str | None:
    """Why there can be no such hosts here, or None."""
    absent = [name for name in (*PROGRAMS, *programs) if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"needs Debian's openssh-server, iproute2, pdsh, openmpi-bin: no {', '.join(absent)}"
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    words = ["unshare", *_KEPT, "--fork", "ip", "link", "add", "name", "b", "type", "bridge"]
    tried = subprocess.run(words, capture_output=True, text=True, env={"PATH": _PATH})
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


class Host:
    """Namespaces of its own, which last as long as a process that sleeps in them."""

    def __init__(self, name: str) -> None:
        self.name = name
        words = ["unshare", *_KEPT, "--fork", "--kill-child", "--mount-proc", "sleep", "infinity"]
        self._unshare = subprocess.Popen(words, env={"PATH": _PATH})
        self.pid = self._first()

    def _first(self) -> int:
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        for _ in range(3000):
            found = children.read_text().split()
            if found and Path(f"/proc/{found[0]}/comm").read_text().strip() == "sleep":
                return int(found[0])
            time.sleep(0.01)
        raise TimeoutError("unshare starts nothing")

    def words(self, command: Sequence[str], cwd: Path = ROOT) -> list[str]:
        """What runs a command on this host."""
        return ["nsenter", *_KEPT, f"--target={self.pid}", f"--wd={cwd}", "--", *command]

    def run(self, *command: str) -> str:
        """Run a command of the system there; returns what it printed."""
        done = subprocess.run(
            self.words(command), capture_output=True, text=True, env={"PATH": _PATH}, timeout=20
        )
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr}"
        return done.stdout

    def network(self, *command: str) -> None:
        """Run `ip` or `tc` in its network, with this machine's process numbers."""
        words = ["nsenter", "--net", f"--target={self.pid}", "--", *command]
        done = subprocess.run(words, capture_output=True, text=True, env={"PATH": _PATH})
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr}"

    def bind(self, source: Path, target: Path) -> None:
        """Show a file or folder in the place of another, on this host only."""
        self.run("mount", "--bind", str(source), str(target))

    def end(self) -> None:
        """Kill all that runs here, as a loss of power would; the namespaces go with it."""
        self._unshare.kill()  # its child is told to die too, the first process of its namespace
        self._unshare.wait()


class Cluster:
    """Hosts on one bridge, each with an sshd; `environment` is that of a person on any of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self.hosts: dict[str, Host] = {}
        tools = folder / "bin"
        tools.mkdir()
        (tools / "ssh").write_text(
            f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n'
        )
        (tools / "ssh").chmod(0o755)
        # Nothing of this machine's own network goes along (GLOO_SOCKET_IFNAME=lo would tie the
        # ranks of each host to its loopback), and HOME holds no settings of its user.
        plain = {k: v for k, v in environment().items() if not k.startswith(_NETWORK)}
        path = f"{tools}:{plain['PATH']}:/usr/sbin:/sbin"
        self.environment = {**plain, "PATH": path, "HOME": str(folder)}
        (folder / "ssh_config").write_text(_SSH.format(folder=folder))
        (folder / "known_hosts").touch()
        (folder / "hosts").write_text("127.0.0.1 localhost\n")
        _new_key(folder / "user_key")
        self._switch = self._new_host("switch")
        self._switch.network("ip", "link", "add", "bridge", "type", "bridge")
        self._switch.network("ip", "link", "set", "bridge", "up")

    def _new_host(self, name: str) -> Host:
        host = Host(name)
        self._stack.callback(host.end)
        return host

    def add(self, name: str, sshd: str = "") -> Host:
        """Make a host; `sshd`: more lines of its sshd_config."""
        host = self._new_host(name)
        self.hosts[name] = host
        address = f"10.77.0.{len(self.hosts)}"
        host.run("hostname", name)
        self._plug(host, f"port{len(self.hosts)}", address)
        for place in ("/run", "/dev/shm"):  # those of a machine of its own
            host.run("mount", "-t", "tmpfs", "none", place)
        with (self._folder / "hosts").open("a") as names:
            names.write(f"{address} {name}\n")
        host.bind(self._folder / "hosts", Path("/etc/hosts"))
        self._start_sshd(host, address, sshd)
        return host

    def _plug(self, host: Host, port: str, address: str) -> None:
        switch = self._switch
        switch.network("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0")
        switch.network("ip", "link", "set", "eth0", "netns", str(host.pid))
        switch.network("ip", "link", "set", port, "master", "bridge", "up")
        host.network("ip", "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            host.network("ip", "link", "set", device, "up")

    def _start_sshd(self, host: Host, address: str, more: str) -> None:
        folder = self._folder / host.name
        folder.mkdir()
        _new_key(folder / "host_key")
        kind, key, *_ = (folder / "host_key.pub").read_text().split()
        with (self._folder / "known_hosts").open("a") as known:
            known.write(f"{host.name},{address} {kind} {key}\n")
        shutil.copy(self._folder / "user_key.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(_SSHD.format(folder=folder, more=more))
        host.run("mkdir", "/run/sshd")
        host.run("/usr/sbin/sshd", "-f", str(folder / "sshd_config"), "-E", str(folder / "log"))

    def start(
        self, on: str, command: Sequence[str], cwd: Path = ROOT, **extra: str
    ) -> subprocess.Popen[str]:
        """Start a command on a host, output and errors in one pipe."""
        return subprocess.Popen(
            self.hosts[on].words(command, cwd),
            env={**self.environment, **extra},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, on: str, command: Sequence[str], timeout: float = 100, **extra: str
    ) -> tuple[int, str]:
        """Run a command on a host to its end; its exit status and all that was printed."""
        process = self.start(on, command, **extra)
        try:
            return_value = process.communicate(timeout=timeout)[0]
        finally:
            process.kill()
        return process.returncode, return_value

    def end(self) -> None:
        """End all hosts."""
        self._stack.close()


@contextlib.contextmanager
def cluster(folder: Path, *names: str) -> Iterator[Cluster]:
    """Yield a cluster of those hosts; none of it is left, whatever happens."""
    made = Cluster(folder)
    try:
        for name in names:
            made.add(name)
        yield made
    finally:
        made.end()


def _new_key(path: Path) -> None:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(words, check=True)
