"""Whether hosts are ready for a run: asked of all at once, before anything starts on any.

Each finding is a line that names the host and the mend. All of it takes less than 30 s, whatever
the hosts do.
"""

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from finetune.config import FinetuneConfig
from launch.cluster import network_variables, probe
from launch.cluster.conversation import Conversation, HostError
from launch.cluster.hosts import passed_on
from launch.cluster.training import Training
from runtime.errors import EXIT_BAD_INPUT, UserError

MAX_SKEW_S = 2.0
_MEETING_S = 8.0  # for all to reach the first host, and to see one directory
_MOST_AT_ONCE = 128  # connections that are being made
_CLOCK_QUESTIONS = 3
_BUSY = 0.1  # of a GPU's memory in use by others


class Wants(NamedTuple):
    """What a run needs of every host."""

    files: tuple[str, ...] = ()  # equal everywhere
    data: tuple[str, ...] = ()  # prepared directories, equal everywhere
    shared: Path | None = None  # the run directory, on a file system that all see
    device: str = "auto"


class Ready(NamedTuple):
    """What was found where nothing was wrong."""

    facts: dict[str, dict[str, Any]]  # by host, as the probe tells them
    skew_s: float  # the largest
    warnings: list[str]


def wants(training: Training) -> Wants:
    """What a training run needs of every host."""
    config = training.config
    if isinstance(config, FinetuneConfig):
        named = (config.data.train, config.data.dev, config.data.test)
        files, data = [name for name in named if name], []
    else:
        files, data = [], [str(source.path) for source in config.data.sources]
    return Wants((training.path, *files), tuple(data), config.run_dir, config.run.device)


def require_ready(hosts: Mapping[str, int], needs: Wants, port: int) -> Ready:
    """Ask all hosts. Raises UserError with every host that is not ready, and why."""
    asked = _Asked(hosts, needs)
    try:
        asked.ask_all()
        asked.meet(port)
    finally:
        asked.end()
    asked.judge()
    found = {host: texts for host, texts in asked.problems.items() if texts}
    if found:
        number = f"{len(found)} of {len(hosts)} hosts {'is' if len(found) == 1 else 'are'}"
        lines = [f"  {host}: {text}" for host, texts in found.items() for text in texts]
        raise UserError("\n".join([f"{number} not ready:", *lines]), status=EXIT_BAD_INPUT)
    return Ready(asked.facts, max(map(abs, asked.skews.values())), asked.warnings)


class _Asked:
    """The conversations with all hosts, and what they brought."""

    def __init__(self, hosts: Mapping[str, int], needs: Wants) -> None:
        self.hosts = hosts
        self.needs = needs
        self.first = next(iter(hosts))
        self.facts: dict[str, dict[str, Any]] = {}
        self.skews: dict[str, float] = {}
        self.problems: dict[str, list[str]] = {host: [] for host in hosts}
        self.warnings: list[str] = []
        self._talks: dict[str, Conversation] = {}

    def ask_all(self) -> None:
        """Reach every host, and ask what it is."""
        self._with_each(self.hosts, self._ask)

    def _ask(self, host: str) -> None:
        talk = Conversation(host, passed_on(os.environ), Path.cwd())
        self._talks[host] = talk
        facts = talk.ask("facts", files=self.needs.files, data=self.needs.data)
        self.skews[host] = _skew(talk)
        self.facts[host] = facts

    def meet(self, port: int) -> None:
        """Whether all reach the port of the first host, and see one run directory."""
        for host in self.facts:
            self._talks[host].allow(_MEETING_S)
        if self.first not in self.facts or not self._is_free(port):
            return
        others = [host for host in self.facts if host != self.first]

        def reach(host: str) -> None:
            problem = self._talks[host].ask("connect", host=self.first, port=port)["problem"]
            if problem:
                raise HostError(
                    f"does not reach {self.first}:{port} ({problem}), where ranks meet; does "
                    f"{self.first} mean the same machine there, and no firewall stand between?"
                )

        self._with_each(others, reach)
        self._with_each([self.first], lambda host: self._talks[host].ask("release"))
        if self.needs.shared is not None and others:
            self._see_one_directory(self.needs.shared, others)

    def _is_free(self, port: int) -> bool:
        def listen(host: str) -> None:
            problem = self._talks[host].ask("listen", port=port)["problem"]
            if problem:
                raise HostError(
                    f"port {port}, where ranks meet, cannot be had ({problem}): another run? End "
                    "it, or choose another with --master-port"
                )

        self._with_each([self.first], listen)
        return not self.problems[self.first]

    def _see_one_directory(self, directory: Path, others: list[str]) -> None:
        """Checkpoints are written by all ranks into one directory."""
        file = directory.absolute().parent / f".ingot-{secrets.token_hex(8)}"

        def leave(host: str) -> None:
            problem = self._talks[host].ask("leave", path=str(file))["problem"]
            if problem:
                raise HostError(f"cannot write to {file.parent}, the place of runs: {problem}")

        def see(host: str) -> None:
            if not self._talks[host].ask("see", path=str(file))["seen"]:
                raise HostError(
                    f"{file.parent} is another folder than on {self.first}: all ranks write one "
                    "checkpoint; put run.dir on a file system that all hosts share"
                )

        self._with_each([self.first], leave)
        if not self.problems[self.first]:
            self._with_each(others, see)
            self._with_each(
                [self.first], lambda host: self._talks[host].ask("remove", path=str(file))
            )

    def _with_each(self, hosts: Iterable[str], action: Callable[[str], object]) -> None:
        """Do something with hosts at once; their trouble becomes theirs in the list."""

        def attempt(host: str) -> None:
            try:
                action(host)
            except HostError as trouble:
                self.problems[host].append(str(trouble))

        with ThreadPoolExecutor(_MOST_AT_ONCE) as pool:
            list(pool.map(attempt, hosts))

    def judge(self) -> None:
        """Compare what the hosts told with one another and with this machine."""
        mine = probe.made_with(list(self.needs.files), list(self.needs.data))
        self.facts = {host: self.facts[host] for host in self.hosts if host in self.facts}
        for host, facts in self.facts.items():
            problems = self.problems[host]
            problems += _unlike(mine, facts)
            problems += network_variables.misfits(facts)
            problems += _devices(self.hosts[host], facts, self.needs.device)
            if abs(self.skews[host]) > MAX_SKEW_S:
                way = "ahead" if self.skews[host] > 0 else "behind"
                problems.append(
                    f"its clock is {abs(self.skews[host]):.1f} s {way}; switch on its time "
                    "synchronisation (timedatectl set-ntp true)"
                )
            if unused := network_variables.unused_infiniband(facts):
                self.warnings.append(f"{host}: {unused}")
            if not facts["gpus"] and self.hosts[host] > facts["cores"]:
                self.warnings.append(
                    f"{host}: slots={self.hosts[host]} and {facts['cores']} cores: ranks will wait "
                    "for one another"
                )
        self._compare_hosts()
        told = network_variables.unknown(probe.network_variables())
        self.warnings += [f"environment: {text}" for text in told]

    def _compare_hosts(self) -> None:
        environments = {host: facts["environment"] for host, facts in self.facts.items()}
        if environments:
            for host, text in network_variables.contradictions(environments):
                self.problems[host].append(text)
        with_gpus = [host for host, facts in self.facts.items() if facts["gpus"]]
        seen: dict[tuple[Any, ...], str] = {}
        for host, facts in self.facts.items():
            if with_gpus and not facts["gpus"] and self.needs.device != "cpu":
                self.problems[host].append(
                    f"no NVIDIA GPU, and {with_gpus[0]} has some; take it out of the host file, or "
                    "write run.device=cpu"
                )
            machine = (facts["host"], *facts["addresses"])
            if facts["addresses"] and machine in seen:
                self.problems[host].append(
                    f"is the same machine as {seen[machine]}; write it once, with all its slots"
                )
            seen.setdefault(machine, host)

    def end(self) -> None:
        """Leave all hosts."""
        talks = list(self._talks.values())
        with ThreadPoolExecutor(_MOST_AT_ONCE) as pool:
            list(pool.map(Conversation.end, talks))


def _skew(talk: Conversation) -> float:
    """How far the clock of a host is ahead of ours, in seconds.

    Halfway between question and answer, of the quickest exchange: Cristian, Distributed Computing
    3, 1989.
    """
    found = []
    for _ in range(_CLOCK_QUESTIONS):
        sent = time.time()
        theirs = talk.ask("clock")["time"]
        received = time.time()
        found.append((received - sent, theirs - (sent + received) / 2))
    return float(min(found)[1])


def _unlike(mine: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Where the environment, the source tree, the files or the data are other ones than here."""
    if facts["problem"]:
        return [f"the environment is not whole: {facts['problem']}; run launch/setup.sh there"]
    found = []
    different = [
        f"{name} {facts['packages'].get(name, 'missing')} instead of {version}"
        for name, version in mine["packages"].items()
        if facts["packages"].get(name) != version
    ]
    if different:
        found.append(f"other packages: {', '.join(different)}; run launch/setup.sh there")
    if facts["source"] != mine["source"]:
        found.append(
            f"another version of the source tree ({facts['source']} instead of {mine['source']}); "
            f"bring {probe.ROOT} up to date there"
        )
    for path, digest in mine["files"].items():
        theirs = facts["files"].get(path)
        if theirs is None:
            found.append(f"{path} is missing there; copy it to the same path")
        elif theirs != digest:
            found.append(
                f"{path} is another copy there ({theirs} instead of {digest}); copy it again, or "
                "prepare it once and share it"
            )
    found += [text for path, text in facts["broken"].items() if path in facts["files"]]
    return found


def _devices(slots: int, facts: Mapping[str, Any], device: str) -> list[str]:
    """Whether there are as many GPUs as slots, and free ones."""
    if device == "cpu" or (device == "auto" and not facts["gpus"]):
        return []
    found = []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    numbers = [int(word) for word in chosen.split(",") if word.strip().isdigit()]
    here = [gpu for gpu in facts["gpus"] if not numbers or gpu["index"] in numbers]
    if len(here) < slots:
        found.append(f"slots={slots} and {len(here)} GPUs; write slots={len(here)}")
    for gpu in here[:slots]:
        if gpu["used"] > _BUSY * gpu["total"]:
            found.append(
                f"GPU {gpu['index']} is in use ({gpu['used'] / 1024:.1f} of "
                f"{gpu['total'] / 1024:.1f} GiB); end what runs there (nvidia-smi), or leave it out"
            )
    return found


def tell(ready: Ready, port: int, first: str) -> None:
    """Print what was found."""
    for text in ready.warnings:
        print(f"warning: {text}", file=sys.stderr)
    number = len(ready.facts)
    print(
        f"{number} {'host is' if number == 1 else 'hosts are'} ready: one source tree, one set of "
        f"packages, clocks within {ready.skew_s * 1000:.0f} ms, port {port} free on {first}",
        flush=True,
    )
