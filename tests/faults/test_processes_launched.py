"""P1, P2, P6, P8, X7: runs under real launchers and the supervisor lose processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import leftovers
from runtime import hang
from runtime.checkpoint import newest_verified
from runtime.records import read_metrics
from runtime.watcher import read_json
from tests.corpus import prepare_corpus
from tests.faults.harness import until
from tests.faults.sockets import is_loopback, listeners
from tests.processes import ROOT, environment, free_port

SUPERVISE = [sys.executable, "-m", "launch", "supervise"]
MODULE = "tests.faults.injection"
INTERVAL = 4  # steps between saves


class Launched:
    """Supervised runs below a directory; ends what is left of them, by pid."""

    def __init__(self, directory: Path, corpus: Path) -> None:
        self.directory = directory
        self.run_dir = directory / "run"
        self.config = directory / "run.yaml"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.config.write_text(
            f"run: {{dir: {self.run_dir}, seed: 3}}\n"
            "model: {preset: null, family: llama, n_layers: 1, n_heads: 1, d_model: 8, "
            f"max_seq_len: 16}}\ndata: {{train: {corpus}, seq_len: 16}}\n"
            "batch: {global_batch_size: 4}\nsteps: 1000000\nprecision: fp32\n"
            "evaluate: {every_steps: 0}\nlog: {every_steps: 1, tensorboard: false}\n"
            f"checkpoint: {{every_steps: {INTERVAL}}}\nhealth: {{hang_timeout_s: 60}}\n"
        )

    def start(
        self, launcher: list[str], *overrides: str, options: tuple[str, ...] = (), **extra: Any
    ) -> subprocess.Popen[bytes]:
        """A run of two ranks under a supervisor; its output goes to a file."""
        faults = json.dumps(extra.pop("faults", []))
        output = (self.directory / f"output{len(self.processes)}").open("wb")
        process = subprocess.Popen(
            [*SUPERVISE, *options, "--", *launcher, str(self.config), *overrides],
            cwd=ROOT,
            env=environment(INGOT_FAULTS=faults, **extra),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        output.close()
        self.processes.append(process)
        return process

    def output(self, number: int = 0) -> str:
        return (self.directory / f"output{number}").read_text(errors="replace")

    def ranks(self) -> dict[int, int]:
        """Pids of the ranks that run, by rank."""
        found = {}
        for path in (self.run_dir / "health").glob("rank_*.json"):
            beat = read_json(path)
            if beat is None:  # a new start removes those of the last one
                continue
            alive = hang.process(beat["pid"])
            if alive is not None and alive.state != "Z" and not beat["end"]:
                found[beat["rank"]] = beat["pid"]
        return found

    def step(self) -> int:
        """The last step that was written down."""
        records = read_metrics(self.run_dir / "metrics.jsonl")
        return records[-1]["step"] if records else 0

    def train_until(self, step: int) -> None:
        until(lambda: self.step() >= step, f"step {step}")

    def belonging(self) -> list[int]:
        """Pids of all processes that have this directory on their command line."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(self.directory).encode() in words and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_corpus(tmp_path_factory.mktemp("launched"), documents=60)


@pytest.fixture
def launched(tmp_path: Path, corpus: Path) -> Iterator[Launched]:
    found = Launched(tmp_path, corpus)
    try:
        yield found
    finally:
        for process in found.processes:
            process.kill()
            process.wait()
        for pid in found.belonging():
            leftovers.send(pid, signal.SIGKILL)


def deepspeed() -> list[str]:
    port = ["--master_port", str(free_port())]
    return ["deepspeed", "--num_gpus", "2", *port, "--module", MODULE]


def torchrun() -> list[str]:
    port = ["--master-port", str(free_port())]
    return ["torchrun", "--nproc-per-node", "2", *port, "-m", MODULE]


def stop(launched: Launched) -> None:
    """Ask for the end; nothing may be left, and what was saved is whole."""
    process = launched.processes[-1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 75, launched.output()
    until(lambda: not launched.belonging(), "the end of all processes", 10)
    found = newest_verified(launched.run_dir / "checkpoints")
    assert found is not None
    assert found.step == launched.step()


@pytest.mark.parametrize("launcher", [deepspeed, pytest.param(torchrun, marks=pytest.mark.nightly)])
def test_p1_a_killed_rank(launched: Launched, launcher: Callable[[], list[str]]) -> None:
    memory = leftovers.shared_memory()
    launched.start(launcher())
    launched.train_until(2 * INTERVAL + 2)
    before = launched.ranks()
    assert len(before) == 2
    os.kill(before[1], signal.SIGKILL)
    killed, reached = time.monotonic(), launched.step()
    until(lambda: "supervise: restart 1" in launched.output(), "the restart", 20)
    noticed = time.monotonic() - killed
    assert noticed < 15, "5 s, and the time of the launcher's own clean-up"
    until(
        lambda: (
            len(launched.ranks()) == 2 and not set(launched.ranks().values()) & set(before.values())
        ),
        "new ranks",
    )
    until(lambda: "resumed from" in launched.output(), "the resumption")
    (resumed,) = re.findall(r"resumed from \S+, step (\d+)", launched.output())
    assert int(resumed) >= reached - 2 * INTERVAL  # a save may have been under way
    assert "rank 1 ended suddenly" in launched.output()
    launched.train_until(reached + 1)
    stop(launched)
    assert leftovers.shared_memory() <= memory


@pytest.mark.nightly
def test_p1_a_killed_launcher(launched: Launched) -> None:
    """DeepSpeed's runner ends with 0 when its launcher is killed, and the ranks train on."""
    launched.start(deepspeed())
    launched.train_until(3)
    (launcher,) = {_parent(pid) for pid in launched.ranks().values()}
    os.kill(launcher, signal.SIGKILL)
    until(lambda: "resumed from" in launched.output(), "the resumption")
    (saved,) = re.findall(r"stopped after step (\d+) \(the launcher is gone\)", launched.output())
    assert f"step {saved}\n" in launched.output(), "no step is lost"
    launched.train_until(int(saved) + 1)
    stop(launched)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_p6_the_same_step_crashes_again_and_again(launched: Launched) -> None:
    """The sixth step of each start; saves are far between, so that it is the same one."""
    fault = {"kind": "step", "do": "raise", "step": 6}
    process = launched.start(
        [sys.executable, "-m", MODULE], "checkpoint.every_steps=0", faults=[fault]
    )
    assert process.wait(300) == 1
    assert launched.output().count("supervise: the first failure: rank 0 failed") == 3
    assert "InjectedError: injected" in launched.output()
    assert "error: gave up: it failed 3 times in a row at step 5" in launched.output()


@pytest.mark.nightly
def test_x7_no_listener_beyond_loopback(launched: Launched) -> None:
    launched.start(deepspeed())
    launched.train_until(2)
    listening = {address for pid in launched.belonging() for address in listeners(pid)}
    assert listening, "ranks listen to one another"
    assert {address for address in listening if not is_loopback(address)} == set()
    assert launched.run_dir.stat().st_mode & 0o777 == 0o700
    stop(launched)


@pytest.mark.nightly
def test_x7_torchruns_own_port_is_warned_of(launched: Launched) -> None:
    launched.start(torchrun())
    launched.train_until(2)
    ranks = {a for pid in launched.ranks().values() for a in listeners(pid)}
    assert ranks
    assert all(is_loopback(address) for address in ranks)
    assert launched.output().count("warning: torchrun listens on port") == 1
    stop(launched)


def agents(launched: Launched, **extra: Any) -> list[subprocess.Popen[bytes]]:
    """Two machines, as far as torchrun can tell, with a supervisor and a rank each."""
    port = free_port()
    command = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "p2", "-m", MODULE]
    return [launched.start(command, **extra) for _ in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_p2_one_of_two_agents_is_killed(launched: Launched, victim: int) -> None:
    """Its supervisor starts another one; the peer fails within a minute, and both meet again."""
    both = agents(launched)
    launched.train_until(INTERVAL + 2)
    before = launched.ranks()
    agent = {rank: _parent(pid) for rank, pid in before.items()}[victim]
    os.kill(agent, signal.SIGKILL)
    until(lambda: not set(launched.ranks().values()) & set(before.values()), "no half run", 60)
    reached = launched.step()
    until(lambda: len(launched.ranks()) == 2, "both ranks again", 90)
    launched.train_until(reached + 1)
    for process in both:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in both] == [75, 75]
    until(lambda: not launched.belonging(), "the end of all processes", 10)


def descendants(pid: int) -> list[hang.Process]:
    """All that a process has started, and what that has."""
    return [found for child in hang.children(pid) for found in (child, *descendants(child.pid))]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cycles", [5, pytest.param(50, marks=pytest.mark.nightly)])
def test_p8_nothing_is_left_after_many_faults(launched: Launched, cycles: int) -> None:
    """One supervisor, one rank that is killed again and again after it has made progress."""
    memory = leftovers.shared_memory()
    options = ("--max-restarts", str(cycles + 1))
    process = launched.start([sys.executable, "-m", MODULE], "data.workers=1", options=options)
    descriptors, reached = [], 0
    for cycle in range(cycles):
        # Counted from where the last rank was killed: until the next one goes on, that is what the
        # metrics tell.
        launched.train_until(reached + INTERVAL + 1)
        rank = until(launched.ranks, "the rank")[0]
        descriptors.append(len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
        run = descendants(process.pid)
        assert rank in {found.pid for found in run}
        os.kill(rank, signal.SIGKILL)
        reached = launched.step()
        until(
            lambda n=cycle: f"supervise: restart {n + 1} " in launched.output(), "the restart", 60
        )
        assert [found for found in run if hang.is_alive(found)] == []
    launched.train_until(reached + 1)
    assert max(descriptors) - descriptors[0] <= 5
    stop(launched)
    assert leftovers.shared_memory() <= memory
