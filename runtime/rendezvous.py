"""Ranks find one another: through a store that rank 0, or torchrun's agent, listens for.

The waiting is done here and not inside torch, in short looks: a signal is answered at once, and
who is missing can be named. On one machine nothing listens beyond the loopback interface.
"""

import datetime
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Callable

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistError

from runtime.errors import Stopped, UserError

_LOOPBACK = "127.0.0.1"
_STOP = "stop"
_LONGEST_PAUSE_S = 0.25  # between two looks


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
        self._await(lambda: _answers(host, port), f"nobody answers at {host}:{port}: is rank 0 up?")
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
        self._await(is_bound, f"port {port} is in use; choose another (deepspeed --master_port)")
        self._deadline = time.monotonic() + self._timeout_s
        assert listener is not None, problem
        return listener

    def wait_for_all(self) -> None:
        """Return when all ranks are here. Raises UserError if one is missing, Stopped on a stop."""
        self.store.set(f"here/{self._rank}", "")
        if self._rank == 0:
            here = [f"here/{rank}" for rank in self._ranks]
            self._await(lambda: self.store.check(here), self._missing)
            self.store.set("all", "")
        self._await(lambda: self.store.check(["all"]), "not all ranks have come")

    def _missing(self) -> str:
        missing = [rank for rank in self._ranks if not self.store.check([f"here/{rank}"])]
        return f"of {len(self._ranks)} ranks these have not come: {missing}"

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
    ) -> None:
        pause = 0.01
        while not self._holds(condition, stops):
            if time.monotonic() > self._deadline:
                text = problem if isinstance(problem, str) else problem()
                raise UserError(f"no process group after {self._timeout_s:.0f} s: {text}")
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


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True
