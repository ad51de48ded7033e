"""`python -m launch network --hostfile F`: are the hosts ready, and how fast is their network?

Every host is asked as before a run; then all ranks add up numbers for some seconds. What holds them
up is named.
"""

import argparse
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from launch.arguments import counted
from launch.cluster import network_variables, preflight, probe, ssh, training
from launch.cluster.conversation import Conversation, HostError
from launch.cluster.hosts import hosts_text, passed_on, read_hostfile
from runtime.errors import EXIT_FAILED, EXIT_OK, UserError
from runtime.launcher import HOSTS

_BEYOND_S = 60.0  # for imports, for ranks to meet, and for the last transfer to be given up
_AFTER_FAILURE_S = 3.0  # for the other ranks to tell theirs
_LOCAL_RANKS = 2  # where there are no GPUs


def main(argv: Sequence[str]) -> int:
    """Check hosts and measure; exit status 1 where a host is slow or lost. Raises UserError."""
    options = _options(argv)
    if options.hostfile is None:
        for text in network_variables.unknown(probe.network_variables()):
            print(f"warning: {text}", file=sys.stderr)
        hosts = {"": options.ranks or len(probe.gpus()) or _LOCAL_RANKS}
    else:
        hosts = read_hostfile(options.hostfile)
        needs = preflight.Wants()
        if options.words:
            needs = preflight.wants(training.read(options, sum(hosts.values())))
        ready = preflight.require_ready(hosts, needs, options.master_port)
        preflight.tell(ready, options.master_port, next(iter(hosts)))
    if options.seconds == 0:
        return EXIT_OK
    return _Measurement(hosts, options.master_port, options.seconds).run()


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launch network", description=__doc__)
    parser.add_argument("--hostfile", type=Path, help="HOST slots=N a line; none: this machine")
    parser.add_argument(
        "--ranks",
        type=counted("ranks", 1, 1024),
        help="without a host file; default one for each GPU, two where there is none",
    )
    parser.add_argument(
        "--seconds",
        type=counted("seconds", 0, 3600),
        default=10,
        help="how long to measure; 0 only asks the hosts; default 10",
    )
    parser.add_argument(
        "--master-port",
        type=counted("master-port", 1, 65535),
        default=ssh.PORT,
        help=f"of the first host, where ranks meet; default {ssh.PORT}",
    )
    parser.add_argument("--stage", choices=training.STAGES, default="pretrain")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="-- CONFIG [key=value …]",
        help="also ask for the files and the data of this run",
    )
    return parser.parse_args(argv)


class _Measurement:
    """The ranks of the test on all hosts, and what they told."""

    def __init__(self, hosts: Mapping[str, int], port: int, seconds: int) -> None:
        self._hosts = hosts
        self._names = [host or "localhost" for host in hosts for _ in range(hosts[host])]
        self._port = port
        self._seconds = seconds
        self._at: dict[int, tuple[int, str]] = {}  # rank → its last step, and what it was
        self._failed: dict[int, str] = {}
        self._ended: set[int] = set()
        self._lost: dict[str, str] = {}  # host → why
        self._slow: list[str] = []
        self._talks: list[Conversation] = []

    def run(self) -> int:
        """Start the ranks and print what they tell."""
        try:
            self._start()
            for event in self._events(time.monotonic() + self._seconds + _BEYOND_S):
                self._take(event)
            self._end_talks()
            if len(self._ended) < len(self._names) or self._failed or self._lost:
                raise UserError(self._verdict(), status=EXIT_FAILED)
        finally:
            self._end_talks()
        for text in self._slow:
            print(f"warning: {text}", file=sys.stderr)
        return EXIT_FAILED if self._slow else EXIT_OK

    def _start(self) -> None:
        environment = passed_on(os.environ)
        rank = 0
        for host, slots in self._hosts.items():
            talk = Conversation(host, environment, Path.cwd())
            self._talks.append(talk)
            words = [sys.executable, "-u", "-m", "runtime.bandwidth", f"--seconds={self._seconds}"]
            environments = [self._environment(rank + n, n, slots) for n in range(slots)]
            talk.send("start", words=words, environments=environments)
            rank += slots

    def _environment(self, rank: int, local_rank: int, slots: int) -> dict[str, str]:
        named = {host or "localhost": number for host, number in self._hosts.items()}
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(len(self._names)),
            "LOCAL_WORLD_SIZE": str(slots),
            "MASTER_ADDR": next(iter(named)),
            "MASTER_PORT": str(self._port),
            HOSTS: hosts_text(named),
        }

    def _events(self, deadline: float) -> Iterator[dict[str, Any]]:
        """What the ranks tell, until all have ended or it cannot come to that."""
        talks = {talk.output: talk for talk in self._talks}
        while len(self._ended) < len(self._names):
            if self._failed or self._lost:
                deadline = min(deadline, time.monotonic() + _AFTER_FAILURE_S)
            if not talks or time.monotonic() > deadline:
                return
            for output in select.select(list(talks), [], [], 0.5)[0]:
                talk = talks[output]
                try:
                    yield from talk.read(0.0)
                except HostError as trouble:
                    self._lost[talk.host] = str(trouble)
                    del talks[output]

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.get("kind")
        if kind == "at":
            self._at[event["rank"]] = (event["step"], event["what"])
        elif kind == "failed":
            self._failed[event["rank"]] = event["error"]
        elif kind == "end":
            self._ended.add(event["rank"])
            if event["status"] != EXIT_OK:
                self._failed.setdefault(event["rank"], "")
        elif kind == "pairs":
            self._slow = event["slow"]
            for a, b, rate in sorted(event["rates"], key=lambda row: float(row[2]))[:16]:
                print(f"{a} → {b}: {rate / 1e6:,.0f} MB/s", flush=True)
        elif kind == "size":
            self._tell_size(event)

    def _tell_size(self, event: dict[str, Any]) -> None:
        print(
            f"all-reduce of {event['bytes'] // 1024:>8,} KiB, {len(self._names)} ranks: "
            f"{event['seconds'] * 1e6:>11,.0f} µs  {event['rate'] / 1e6:>9,.1f} MB/s  bus "
            f"{event['bus'] / 1e6:>9,.1f} MB/s  ({event['repeats']} times)",
            flush=True,
        )

    def _verdict(self) -> str:
        """Which host is dead, or which rank is behind, in one line."""
        lost = self._unreachable()
        last = max((at for at in self._at.values()), default=(0, "the start"))
        if lost:
            return "; ".join(f"{host} was lost in {last[1]}: {why}" for host, why in lost.items())
        told = [text for text in self._failed.values() if text]
        if told:
            return told[0]
        behind = [
            rank
            for rank in range(len(self._names))
            if self._at.get(rank, (0, ""))[0] < last[0] and rank not in self._ended
        ] or sorted(self._failed)
        where = ", ".join(f"rank {rank} on {self._names[rank]}" for rank in behind[:8])
        return (
            f"{where or 'a rank'} did not come through {last[1]}: its host answers to ssh, but its "
            "process is stopped, was killed, or is cut off from the others' ports"
        )

    def _unreachable(self) -> dict[str, str]:
        """The hosts that do not answer any more, and why; asked anew."""
        hosts = [host for host in self._hosts if host]

        def ask(host: str) -> str:
            talk = Conversation(host, {}, Path.cwd())
            try:
                talk.ask("clock")
            except HostError as trouble:
                return str(trouble)
            finally:
                talk.end()
            return ""

        with ThreadPoolExecutor(max(len(hosts), 1)) as pool:
            found = dict(zip(hosts, pool.map(ask, hosts), strict=True))
        return {host: why for host, why in found.items() if why}

    def _end_talks(self) -> None:
        with ThreadPoolExecutor(max(len(self._talks), 1)) as pool:
            list(pool.map(Conversation.end, self._talks))
        self._talks = []
