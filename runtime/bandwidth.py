"""All-reduce over the ranks of several hosts for some seconds: how fast, and who holds it up.

`python -m runtime.bandwidth`, started by `python -m launch network` as one rank per slot. Works
with NCCL and with gloo. Three phases, each of which names what the next one would hang in: plain
TCP connections between all hosts, transfers between pairs of hosts, the all-reduce itself. Results
go out as lines of JSON.
"""

import argparse
import contextlib
import datetime
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as torch_dist

from runtime.dist import is_lost_peer, resolve_device
from runtime.errors import EXIT_FAILED, EXIT_OK, UserError, leave
from runtime.launcher import hosts_of_ranks
from runtime.rendezvous import Meeting, is_single_node, listen_towards, stay_on_loopback

MARK = "ingot-probe "  # as `launch/cluster/probe.py`, through which this is printed
MEETING_S = 25.0
_OPERATION_S = 10  # no single transfer takes longer on a network worth having
_CONNECT_S = 4.0
_PAIR_BYTES = {"cpu": 2 << 20, "cuda": 64 << 20}
_MOST_ROUNDS = 15  # of pairs; beyond 16 hosts each is measured with some of the others
_PAIR_REPEATS = 3
_GROWTH = 8
_SIZES = [(1 << 13) * _GROWTH**power for power in range(6)]  # 8 KiB … 256 MiB
_MOST_REPEATS = 2000
_SLOW = 1 / 3  # of the others' median


class SelfTest:
    """One rank's part of the test."""

    def __init__(self, rank: int, world_size: int, seconds: float) -> None:
        self.rank, self.world_size, self.seconds = rank, world_size, seconds
        self.device = resolve_device("auto")
        hosts = hosts_of_ranks()
        self.hosts = list(dict.fromkeys(hosts))
        self.leaders = [hosts.index(host) for host in self.hosts]  # a rank of each host
        self.number = self.leaders.index(rank) if rank in self.leaders else -1
        self._steps = 0

    def run(self) -> int:
        """Run all phases; the exit status."""
        self.at("meeting")
        if is_single_node():
            stay_on_loopback()
        else:
            listen_towards(os.environ["MASTER_ADDR"])
        meeting = Meeting(self.rank, self.world_size, MEETING_S, lambda: False)
        meeting.wait_for_all()
        if len(self.hosts) > 1:
            self.at("connections between hosts")
            if problem := meeting.agree(json.dumps(self._unreached(meeting)), self._judge_reach):
                raise UserError(problem)
        self.at("process group")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        torch_dist.init_process_group(
            "nccl" if self.device.type == "cuda" else "gloo",
            store=meeting.store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=datetime.timedelta(seconds=_OPERATION_S),
        )
        began = time.monotonic()
        if len(self.hosts) > 1:
            measured = self._measure_pairs()
            told = meeting.agree(json.dumps(measured), lambda texts: self._pairs_told(texts))
            if self.rank == 0:
                say("pairs", **json.loads(told))
        self._all_reduce(began + self.seconds)
        torch_dist.destroy_process_group()
        return EXIT_OK

    def at(self, what: str) -> None:
        """Tell where this rank is: who is behind the others is the one they wait for."""
        self._steps += 1
        say("at", rank=self.rank, step=self._steps, what=what)

    def _unreached(self, meeting: Meeting) -> list[str]:
        """The hosts whose port this one does not reach, as a leader; nothing as another rank."""
        if self.number < 0:
            return []
        with socket.create_server(("", 0), backlog=256) as listener:
            address = f"{_own_address()}:{listener.getsockname()[1]}"
            meeting.store.set(f"listen/{self.number}", address)
            with _answering(listener):
                unreached = [
                    host
                    for number, host in self._partners()
                    if not _reaches(meeting.store.get(f"listen/{number}").decode())
                ]
                meeting.store.set(f"tried/{self.number}", "")
                deadline = time.monotonic() + len(self.hosts) * _CONNECT_S
                tried = [f"tried/{number}" for number in range(len(self.hosts))]
                while not meeting.store.check(tried) and time.monotonic() < deadline:
                    time.sleep(0.05)
        return unreached

    def _partners(self) -> list[tuple[int, str]]:
        """Hosts that this one tries: all of a small cluster, else those at powers of two."""
        total = len(self.hosts)
        distances = range(1, total) if total <= 64 else [1 << k for k in range(total.bit_length())]
        numbers = {(self.number + distance) % total for distance in distances} - {self.number}
        return [(number, self.hosts[number]) for number in sorted(numbers)]

    def _judge_reach(self, texts: list[str]) -> str:
        pairs = [
            (self.hosts[number], other)
            for number, leader in enumerate(self.leaders)
            for other in json.loads(texts[leader])
        ]
        return who_is_unreached(pairs)

    def _measure_pairs(self) -> list[tuple[str, str, float]]:
        """Bytes per second from this host to others, one pair at a time; both ways. Collective."""
        measured: list[tuple[str, str, float]] = []
        data = torch.zeros(_PAIR_BYTES[self.device.type] // 4, device=self.device)
        for pairs in rounds(len(self.hosts))[:_MOST_ROUNDS]:
            self.at(f"pairs {' '.join(f'{self.hosts[a]}-{self.hosts[b]}' for a, b in pairs[:3])}")
            for a, b in pairs:
                if self.number not in (a, b):
                    continue
                for sender, receiver in ((a, b), (b, a)):
                    rate = self._transfer(data, self.leaders[sender], self.leaders[receiver])
                    if self.number == sender:
                        measured.append((self.hosts[sender], self.hosts[receiver], rate))
            torch_dist.barrier()
        return measured

    def _transfer(self, data: torch.Tensor, sender: int, receiver: int) -> float:
        """Bytes per second of the quickest of some transfers, as the sender sees it."""
        answer = torch.zeros(1, device=self.device)
        best = float("inf")
        for _ in range(_PAIR_REPEATS):
            began = time.monotonic()
            if self.rank == sender:
                torch_dist.send(data, receiver)
                torch_dist.recv(answer, receiver)
            else:
                torch_dist.recv(data, sender)
                torch_dist.send(answer, sender)
            self._finish()
            best = min(best, time.monotonic() - began)
        return data.numel() * data.element_size() / best

    def _pairs_told(self, texts: list[str]) -> str:
        rates = {(a, b): rate for text in texts for a, b, rate in json.loads(text)}
        return json.dumps(
            {
                "rates": [[a, b, rate] for (a, b), rate in rates.items()],
                "slow": slow_hosts(rates),
            }
        )

    def _all_reduce(self, deadline: float) -> None:
        """Time each size until its share of the time is used. Collective."""
        seconds = 0.0
        for number, size in enumerate(_SIZES):
            rest = max(self._longest(deadline - time.monotonic()), 0.0)
            if number and _GROWTH * seconds > min(rest, _OPERATION_S / 2):
                break
            # What is queued on a GPU must be done within the group's timeout.
            share = min(rest / (len(_SIZES) - number), _OPERATION_S / 2)
            self.at(f"all-reduce of {size} bytes")
            data = torch.ones(size // 4, device=self.device)
            seconds = self._timed(data, 1)
            if float(data[-1]) != self.world_size:
                raise UserError(f"the all-reduce gives a wrong sum: {float(data[-1])}")
            repeats = max(1, min(int(share / max(seconds, 1e-6)), _MOST_REPEATS))
            data.zero_()
            seconds = self._timed(data, repeats) / repeats
            if self.rank == 0:
                algorithm, bus = bus_bandwidth(size, seconds, self.world_size)
                say("size", bytes=size, repeats=repeats, seconds=seconds, rate=algorithm, bus=bus)

    def _timed(self, data: torch.Tensor, repeats: int) -> float:
        torch_dist.barrier()
        self._finish()
        began = time.monotonic()
        for _ in range(repeats):
            torch_dist.all_reduce(data)
        self._finish()
        return self._longest(time.monotonic() - began)

    def _longest(self, seconds: float) -> float:
        """The largest over all ranks: all take the same decisions. Collective."""
        found = torch.tensor([seconds], device=self.device)
        torch_dist.all_reduce(found, torch_dist.ReduceOp.MAX)
        return float(found)

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def rounds(number: int) -> list[list[tuple[int, int]]]:
    """Every pair of so many players once, in rounds in which each plays once (circle method)."""
    players = [*range(number), *([-1] if number % 2 else [])]
    found = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in pairs if min(a, b) >= 0])
        players = [players[0], players[-1], *players[1:-1]]
    return found


def who_is_unreached(pairs: Sequence[tuple[str, str]]) -> str:
    """One line on hosts that do not reach one another: (from, to); empty where all do."""
    if not pairs:
        return ""
    count: dict[str, int] = {}
    for host in (host for pair in pairs for host in pair):
        count[host] = count.get(host, 0) + 1
    in_each = [host for host, times in count.items() if times == len(pairs)]
    listed = ", ".join(f"{a} → {b}" for a, b in pairs[:6])
    whom = f"{in_each[0]} is in each of these: " if len(in_each) == 1 else ""
    return (
        f"no connection between hosts: {whom}{listed}; open all TCP ports between them, or choose "
        "another network with GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    )


def slow_hosts(rates: Mapping[tuple[str, str], float]) -> list[str]:
    """What is slow of transfers (from, to) → bytes per second, one line each.

    A host is slow where the median of what it sends, or receives, is far below that of the others'
    transfers with one another. Of two hosts only a direction can be told.
    """
    hosts = list(dict.fromkeys(host for pair in rates for host in pair))
    found = []
    for host in hosts:
        others = [rate for pair, rate in rates.items() if host not in pair]
        for side, does in enumerate(("sends", "receives")):
            own = [rate for pair, rate in rates.items() if pair[side] == host]
            if own and others and statistics.median(own) < _SLOW * statistics.median(others):
                found.append(
                    f"{host} is slow: it {does} {_rate(statistics.median(own))}, and between the "
                    f"others it is {_rate(statistics.median(others))}; look at its cable, its port "
                    "and what else runs there"
                )
    for (a, b), rate in rates.items():
        back = rates.get((b, a), 0.0)
        if len(hosts) == 2 and rate < _SLOW * back:
            found.append(
                f"{a} → {b} is slow: {_rate(rate)}, and {_rate(back)} the other way; look at what "
                f"{a} sends through and {b} receives through"
            )
    return found


def bus_bandwidth(size: int, seconds: float, ranks: int) -> tuple[float, float]:
    """Bytes per second of an all-reduce: of the algorithm, and of the bus.

    bus = algorithm · 2(n − 1)/n, which does not depend on the number of ranks where the network is
    the limit (nccl-tests, doc/PERFORMANCE.md).
    """
    algorithm = size / seconds
    return algorithm, algorithm * 2 * (ranks - 1) / ranks


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e6:,.0f} MB/s"


def say(kind: str, **values: Any) -> None:
    """A line of JSON for whoever started this; one write, for lines must not mix."""
    sys.stdout.write(f"{MARK}{json.dumps({'kind': kind, **values})}\n")
    sys.stdout.flush()


def _own_address() -> str:
    """The address of this machine on the network of the first one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing
        return str(probe.getsockname()[0])


@contextlib.contextmanager
def _answering(listener: socket.socket) -> Iterator[None]:
    """Accept connections until the end of the block."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()

    threading.Thread(target=accept, daemon=True).start()
    yield


def _reaches(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Take part as the rank that the environment names; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m runtime.bandwidth", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(argv)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        return SelfTest(rank, world_size, options.seconds).run()
    except (UserError, RuntimeError) as error:  # torch's are RuntimeErrors
        first = str(error).strip().splitlines()[0]
        say("failed", rank=rank, error="" if is_lost_peer(error) else first[:500])
        return EXIT_FAILED


if __name__ == "__main__":
    leave(main())
