"""The same faults, by the same script, against our store and four others.

    python benchmarks/faults.py [--kills 50] [--only ingot deepspeed] [--json FILE]

Two ranks (gloo, CPU) save a small state as fast as they can, in each of the ways of
`fault_peers.py`, and are killed, damaged, and kept from writing; fresh processes then load what is
left. Prints a table, and with --json writes what was counted.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime import provenance
from tests.corpus import prepare_corpus
from tests.faults.harness import ForkServer, Run, fork_server, until
from tests.faults.runs import Runs

WORKER = "benchmarks.fault_peers"
PEERS = (
    "ingot",
    "deepspeed",
    "torch_in_place",
    "torch_tagged",
    "dcp_in_place",
    "dcp_directories",
)
POINTERS = {"missing": None, "empty": b"", "garbage": bytes(range(128, 256))}
Found = list[dict[str, Any]]  # what each rank loaded


class Bench:
    """One peer in one directory."""

    def __init__(self, server: ForkServer, peer: str, directory: Path) -> None:
        self.server, self.peer, self.directory = server, peer, directory
        self.root, self.told = directory / "checkpoints", directory / "acknowledged"
        self.clear()

    def clear(self) -> None:
        """Begin with nothing."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.root.mkdir(parents=True)

    def saver(self, first: int, last: int, *, ranks: int = 2, faults: Any = ()) -> Run:
        """Start ranks that save steps [first, last)."""
        arguments = [self.peer, self.root, first, last, self.told]
        return self.server.start(arguments, target=f"{WORKER}:save", ranks=ranks, faults=faults)

    def save(self, first: int, last: int, *, ranks: int = 2) -> None:
        """Save without a fault."""
        run = self.saver(first, last, ranks=ranks)
        assert run.wait() == [0] * ranks, run.output()

    def load(self, ranks: int = 2) -> Found:
        """What fresh ranks find, one entry each."""
        run = self.server.start([self.peer, self.root], target=f"{WORKER}:load", ranks=ranks)
        run.wait_then_kill(patience_s=30)
        return [(told(p.output()) or [{"error": "died"}])[-1] for p in run]

    def acknowledged(self) -> int:
        """The newest step that counted as saved."""
        lines = self.told.read_text().split() if self.told.exists() else []
        return int(lines[-1]) if lines else 0

    def outcome(self, found: Found) -> str:
        """One word for what a start would do."""
        if any("error" in rank for rank in found):
            whole = [rank for rank in found if "error" not in rank]
            return "some ranks fail" if whole else "fails to load"
        steps = {rank["step"] for rank in found}
        if len(steps) > 1:
            return "ranks load different steps"
        (step,) = steps
        if step is None:
            return "starts at step 0" if self.acknowledged() else "good"
        if any(rank["content"] != [step] for rank in found):
            return "silently wrong"
        return "good" if step >= self.acknowledged() else "an older step"


def told(output: str) -> Found:
    """The JSON lines among what a worker printed."""
    return [json.loads(line[1:]) for line in output.splitlines() if line.startswith("@")]


def kill_storm(bench: Bench, kills: int) -> dict[str, int]:
    """SIGKILL rank 0, 1 or both while they save; then look what a start finds."""
    chance, save_s, counts, first = random.Random(0), 0.05, Counter[str](), 1
    for _ in range(kills):
        run = bench.saver(first, 10**6)
        until(lambda run=run: told(run[0].output()), "the first save")
        before, saves, start = bench.acknowledged(), chance.randint(1, 2), time.monotonic()
        until(
            lambda run=run, wanted=before + saves: (
                bench.acknowledged() >= wanted or run[0].has_ended(0.001)
            ),
            "a save",
        )
        save_s = (time.monotonic() - start) / saves
        run[0].has_ended(chance.uniform(0, save_s))
        for rank in chance.choice(((0,), (1,), (0, 1))):
            run[rank].send(signal.SIGKILL)
        run.wait_then_kill(patience_s=0.2)
        outcome = bench.outcome(bench.load())
        counts[outcome] += 1
        if outcome != "good":  # nothing to go on from: the next kill meets a new run
            bench.clear()
        first = bench.acknowledged() + 1
        first += 1 if bench.peer == "ingot" else 0
    return dict(counts)


def rank_dies(bench: Bench) -> str:
    """Rank 1 dies before it writes its part of the second save."""
    bench.save(1, 2)
    under = str(bench.root)
    fault = {"kind": "op", "rank": 1, "do": "SIGKILL", "op": 1, "under": under}
    if bench.peer in ("deepspeed", "torch_in_place", "torch_tagged"):  # written from C++, unseen
        fault = {"kind": "call", "rank": 1, "do": "SIGKILL", "what": "torch.save", "times": 1}
    bench.saver(2, 3, faults=[fault]).wait_then_kill(patience_s=10)
    return bench.outcome(bench.load())


def pointers(bench: Bench) -> dict[str, str]:
    """The file that names the newest checkpoint is missing, empty, or garbage."""
    found = {}
    for name, content in POINTERS.items():
        bench.clear()
        bench.save(1, 3)
        pointer = bench.root / "latest"
        if not pointer.exists():
            return {"any": "has no pointer"}
        if content is None:
            pointer.unlink()
        else:
            pointer.write_bytes(content)
        found[name] = bench.outcome(bench.load())
    return found


def newest_files(bench: Bench) -> list[Path]:
    """All files of what was saved last."""
    folders = sorted(p for p in bench.root.iterdir() if p.is_dir() and not p.name.startswith("."))
    inside = folders[-1] if folders else bench.root
    return sorted(p for p in inside.rglob("*") if p.is_file() and p.stat().st_size)


def damages(bench: Bench, flips: int, truncations: int) -> dict[str, dict[str, int]]:
    """Bits flip and files are cut short, all over the newest checkpoint, of one rank."""
    bench.clear()
    bench.save(1, 3, ranks=1)
    chance, files, trials = random.Random(0), newest_files(bench), []
    for number in range(flips + truncations):
        # By size, as bits flip; but every file gets its turn.
        weights = [p.stat().st_size for p in files]
        path = files[number] if number < len(files) else chance.choices(files, weights)[0]
        trial = {"path": str(path), "byte": chance.randrange(path.stat().st_size)}
        trials.append(trial | ({"bit": chance.randrange(8)} if number < flips else {}))
    listed = bench.directory / "trials.json"
    listed.write_text(json.dumps(trials))
    run = bench.server.start([bench.peer, bench.root, listed], target=f"{WORKER}:damage")
    assert run.wait() == [0], run.output()
    counts = {"flips": Counter[str](), "truncations": Counter[str]()}
    for result in told(run.output()):
        kind = "flips" if "bit" in result else "truncations"
        counts[kind][verdict(result)] += 1
    assert sum(counts["flips"].values()) == flips
    return {kind: dict(count) for kind, count in counts.items()}


def verdict(result: dict[str, Any]) -> str:
    """What a load made of a damaged checkpoint of step 2, with one of step 1 before it."""
    if "error" in result:
        return "error"
    if result["step"] is None:
        return "starts at step 0"
    if result["content"] != [result["step"]] or result["step"] not in (1, 2):
        return "silently wrong"
    return "harmless" if result["step"] == 2 else "falls back to the previous"


def full_disk(bench: Bench, times: int) -> dict[str, int]:
    """No file may grow beyond a random size while the second step is saved."""
    chance, counts = random.Random(0), Counter[str]()
    for _ in range(times):
        bench.clear()
        bench.save(1, 2)
        largest = max(p.stat().st_size for p in bench.root.rglob("*") if p.is_file())
        fault = {"kind": "limit_files", "bytes": chance.randrange(1, largest)}
        bench.saver(2, 3, faults=[fault]).wait_then_kill(patience_s=30)
        counts[bench.outcome(bench.load())] += 1
    return dict(counts)


class Payload:
    """A pickle of this makes a file when it is read: harmless proof that what it says is run."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._marker),)


def code_execution(bench: Bench) -> dict[str, int]:
    """Each file of the newest checkpoint becomes a pickle, or torch.save file, with a payload."""
    import pickle

    import torch

    bench.clear()
    bench.save(1, 3, ranks=1)
    ran = tried = 0
    for path in newest_files(bench):
        whole = path.read_bytes()
        for kind in ("pickle", "torch.save"):
            marker = bench.directory / f"marker{tried}"
            tried += 1
            if kind == "pickle":
                path.write_bytes(pickle.dumps(Payload(marker)))
            else:
                buffer = io.BytesIO()
                torch.save({"step": 2, "state": Payload(marker)}, buffer)
                path.write_bytes(buffer.getvalue())
            bench.load(ranks=1)
            ran += marker.exists()
        path.write_bytes(whole)
    return {"files": tried, "ran": ran}


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """All faults against one peer."""
    found: dict[str, Any] = {"kill_storm": kill_storm(bench, options.kills)}
    bench.clear()
    found["rank_dies_before_its_part"] = rank_dies(bench)
    found["pointer"] = pointers(bench)
    found |= damages(bench, options.flips, options.truncations)
    found["full_disk"] = full_disk(bench, options.full)
    found["code_execution"] = code_execution(bench)
    return found


def stopped_rank(server: ForkServer, directory: Path, timeout_s: int) -> dict[str, Any]:
    """Seconds until a stopped rank is noticed: by torch's process group, and by our watchdog."""
    run = server.start([timeout_s], target=f"{WORKER}:wait_for_peer", ranks=2)
    until(lambda: is_stopped(run[1].pid), "a rank that has stopped itself")
    began = time.monotonic()
    run[0].wait(timeout_s * 3 + 60)
    group_s, said = time.monotonic() - began, run.output()
    run.kill()
    runs = Runs(server, prepare_corpus(directory / "corpus"), directory)
    config = runs.config("stopped", health__hang_timeout_s=timeout_s, steps=100)
    fault = {"kind": "step", "step": 50, "rank": 1, "do": "SIGSTOP"}
    run = runs.start(config, faults=[fault])
    until(lambda: is_stopped(run[1].pid), "a rank that has stopped itself")
    began = time.monotonic()
    statuses = run.wait(timeout_s * 3 + 60)
    return {
        "timeout_s": timeout_s,
        "process_group_s": round(group_s, 2),
        "process_group_names_the_rank": "rank 1" in said.replace("--- rank 1", ""),
        "watchdog_s": round(time.monotonic() - began, 2),
        "watchdog_statuses": statuses,
        "watchdog_says": [
            line.split(";")[0] for line in run.output().splitlines() if "rank 1 " in line
        ][:3],
    }


def is_stopped(pid: int) -> bool:
    """Whether a process has got SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--flips", type=int, default=60)
    parser.add_argument("--truncations", type=int, default=20)
    parser.add_argument("--full", type=int, default=20, help="times that the disk is full")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, fork_server(Path(directory)) as server:
        for peer in options.only:
            found[peer] = measure(Bench(server, peer, Path(directory) / peer), options)
            print(json.dumps({peer: found[peer]}, indent=2), flush=True)
        found["stopped_rank"] = stopped_rank(server, Path(directory), 10)
    found["versions"] = provenance.versions()
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
