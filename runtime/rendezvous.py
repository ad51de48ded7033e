"""Ranks find one another: through a store that rank 0, or torchrun's agent, listens for.

The waiting is done here and not inside torch, in short looks: a signal is answered at once, and
who is missing can be named. On one machine nothing listens beyond the loopback interface.
"""

import contextlib
import datetime
import fcntl
import ipaddress
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistError

from runtime.errors import Stopped, UserError
from runtime.launcher import hosts_of_ranks

_LOOPBACK = "127.0.0.1"
_STOP = "stop"
_LONGEST_PAUSE_S = 0.25  # between two looks
_TELL_AFTER_S = 15.0  # who is missing
_GET_ADDRESS = 0x8915  # SIOCGIFADDR of linux/sockios.h


def is_single_node() -> bool:
    """Whether all ranks run on this machine, as far as the launcher's variables tell."""
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    if local is not None:
        return local == os.environ.get("WORLD_SIZE", "1")
    address = os.environ.get("MASTER_ADDR", _LOOPBACK)
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def stay_on_loopback() -> None:
    """Keep the sockets of gloo and NCCL on this machine, unless the user chose an interface."""
    if sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")


def listen_towards(host: str) -> None:
    """Let gloo listen on the interface from which `host` is reached, unless the user chose one.

    Gloo takes the address of this machine's own name. Where that is the loopback interface, as
    Debian writes it into /etc/hosts, the ranks of other machines would connect to themselves.
    """
    if sys.platform != "linux" or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with contextlib.suppress(OSError, ValueError):
        if not ipaddress.ip_address(socket.gethostbyname(socket.gethostname())).is_loopback:
            return
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: the kernel chooses the way
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            if name != "lo" and _address(probe, name) == own:
                os.environ["GLOO_SOCKET_IFNAME"] = name


def _address(probe: socket.socket, interface: str) -> str:
    with contextlib.suppress(OSError):
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _GET_ADDRESS, request)[20:24])
    return ""


class Meeting:
    """The store that all ranks share, and what they agree on in it before there is a group."""

    def __init__(
        self, rank: int, world_size: int, timeout_s: float, should_stop: Callable[[], bool]
    ) -> None:
        self._rank = rank
        self._ranks = range(world_size)
        self._should_stop = should_stop
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._agreements = 0
        self._joined: Store | None = None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = self._joined = PrefixStore(f"ingot/{attempt}", self._connect())

    def _connect(self) -> TCPStore:
        host = os.environ.get("MASTER_ADDR", _LOOPBACK)
        port = int(os.environ.get("MASTER_PORT", "29500"))
        timeout = datetime.timedelta(seconds=self._timeout_s)
        is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if is_single_node() and not is_agents:
            host = _LOOPBACK
        elif is_single_node() and self._rank == 0:
            print(
                f"warning: torchrun listens on port {port} of all interfaces, also for one "
                "machine; where the network is not private use deepspeed (SECURITY.md)",
                file=sys.stderr,
            )
        if self._rank == 0 and not is_agents:
            listener = self._listen(host if host == _LOOPBACK else "", port)
            return TCPStore(
                host,
                port,
                len(self._ranks),
                is_master=True,
                timeout=timeout,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
        nobody = f"nobody answers at {host}:{port}: is rank 0 up there, and no firewall between?"
        is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        self._await(lambda: _answers(host, port), nobody, tells=is_first_here)
        return TCPStore(host, port, len(self._ranks), timeout=timeout, wait_for_workers=False)

    def _listen(self, host: str, port: int) -> socket.socket:
        """Listen on one interface, or on all where host is empty."""
        problem = ""
        listener: socket.socket | None = None

        def is_bound() -> bool:
            nonlocal listener, problem
            try:
                all_families = host == "" and socket.has_dualstack_ipv6()
                listener = socket.create_server(
                    (host, port),
                    family=socket.AF_INET6 if all_families else socket.AF_INET,
                    backlog=len(self._ranks) + 16,
                    dualstack_ipv6=all_families,
                )
            except OSError as error:
                problem = str(error)
            return listener is not None

        # A run that has just ended may hold the port for some seconds more.
        self._deadline = min(self._deadline, time.monotonic() + 30)
        self._await(
            is_bound,
            f"port {port} is in use; choose another (--master-port of python -m launch, "
            "--master_port of deepspeed and torchrun)",
        )
        self._deadline = time.monotonic() + self._timeout_s
        assert listener is not None, problem
        return listener

    def wait_for_all(self) -> None:
        """Return when all ranks are here. Raises UserError if one is missing, Stopped on a stop.

        Rank 0 says who is missing, and on which machine, long before it gives up.
        """
        local = [os.environ.get(name) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")]
        place = [socket.gethostname(), int(local[0] or 0), int(local[1] or local[2] or 1)]
        self.store.set(f"here/{self._rank}", json.dumps(place))
        if self._rank == 0:
            here = [f"here/{rank}" for rank in self._ranks]
            self._await(lambda: self.store.check(here), self._missing, tells=True)
            self.store.set("all", "")
        self._await(lambda: self.store.check(["all"]), "not all ranks have come")

    def _missing(self) -> str:
        come: dict[int, tuple[str, int, int]] = {}
        for rank in self._ranks:
            if self.store.check([f"here/{rank}"]):
                host, local_rank, local_size = json.loads(self.store.get(f"here/{rank}"))
                come[rank] = (host, local_rank, local_size)
        return who_is_missing(come, len(self._ranks), hosts_of_ranks())

    def agree(self, text: str, judge: Callable[[list[str]], str]) -> str:
        """What rank 0 judges of every rank's text, in rank order; the same on all. Collective.

        Also whether to stop is agreed on: raises Stopped on every rank, or on none.
        """
        self._agreements += 1
        self._deadline = time.monotonic() + self._timeout_s
        name = f"agreement/{self._agreements}"
        self.store.set(f"{name}/{self._rank}", ("stop " if self._should_stop() else "go ") + text)
        if self._rank == 0:
            judgement = self._judge(name, judge)
        else:
            self._await(lambda: self.store.check([name]), "rank 0 has gone silent", stops=False)
            judgement = self.store.get(name).decode()
            self.store.set(f"{name}/known/{self._rank}", "")
        if judgement == _STOP:
            raise Stopped
        return judgement

    def _judge(self, name: str, judge: Callable[[list[str]], str]) -> str:
        keys = [f"{name}/{rank}" for rank in self._ranks]
        known = [f"{name}/known/{rank}" for rank in self._ranks[1:]]
        silent = "a rank has gone silent"
        try:
            self._await(lambda: self.store.check(keys), silent)
        except Stopped:
            self.store.set(name, _STOP)
            time.sleep(2 * _LONGEST_PAUSE_S)  # the store is ours: the others must have seen it
            raise
        stated = [self.store.get(key).decode().partition(" ") for key in keys]
        is_stop = any(word == "stop" for word, _, _ in stated)
        judgement = _STOP if is_stop else judge([text for _, _, text in stated])
        self.store.set(name, judgement)
        self._await(lambda: self.store.check(known), silent, stops=False)
        return judgement

    def _await(
        self,
        condition: Callable[[], bool],
        problem: str | Callable[[], str],
        *,
        stops: bool = True,
        tells: bool = False,
    ) -> None:
        pause, began = 0.01, time.monotonic()
        while not self._holds(condition, stops):
            now = time.monotonic()
            if now > self._deadline:
                text = problem if isinstance(problem, str) else problem()
                raise UserError(f"no process group after {self._timeout_s:.0f} s: {text}")
            if tells and now - began > _TELL_AFTER_S:
                tells = False
                text = problem if isinstance(problem, str) else problem()
                rest = max(self._deadline - now, 0)
                print(f"warning: {text}; waiting {rest:.0f} s more", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _holds(self, condition: Callable[[], bool], stops: bool) -> bool:
        try:
            if condition():
                return True
            is_stopped = stops and self._is_stopped()
        except DistError as error:
            if self._should_stop():
                raise Stopped from error  # as rank 0 was
            raise UserError("rank 0 has gone while the ranks met; see what it said") from error
        if is_stopped:
            if self._rank == 0:
                time.sleep(2 * _LONGEST_PAUSE_S)  # as in _judge
            raise Stopped
        return False

    def _is_stopped(self) -> bool:
        """Whether this rank was asked to stop, or another one that has come so far."""
        if self._should_stop():
            if self._joined is not None:
                self._joined.set("stop", "")
            return True
        return self._joined is not None and self._joined.check(["stop"])


def who_is_missing(
    come: dict[int, tuple[str, int, int]], world_size: int, hosts: Sequence[str]
) -> str:
    """One line with the ranks that have not come, and their machines.

    come: rank → its host, its number there and how many are there; hosts: of all ranks, or empty
    where the launcher does not tell. Then a rank is where the others of its machine are: launchers
    number the ranks of a machine in a row.
    """
    on: dict[str, list[int]] = {}
    for rank in range(world_size):
        if rank not in come:
            name = hosts[rank] if len(hosts) == world_size else _beside(rank, come)
            on.setdefault(name, []).append(rank)
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    named = sorted({host for host, _, _ in come.values()})
    elsewhere = f"a machine other than {_some(named)}" + (f" (of {nodes})" if nodes else "")
    told = [f"{_some(ranks)} on {name or elsewhere}" for name, ranks in on.items()]
    missing = world_size - len(come)
    return (
        f"of {world_size} ranks {missing} {'has' if missing == 1 else 'have'} not come: rank "
        f"{'; '.join(told)}; see what was printed there, and whether the machine answers"
    )


def _beside(rank: int, come: dict[int, tuple[str, int, int]]) -> str:
    for other, (host, local_rank, local_size) in come.items():
        if 0 <= rank - (other - local_rank) < local_size:
            return host
    return ""


def _some(items: Sequence[object]) -> str:
    more = f" and {len(items) - 8} more" if len(items) > 8 else ""
    return ", ".join(map(str, items[:8])) + more


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True
