"""What is known of a rank that makes no progress, and which of them the others wait for.

Standard library only: the watcher (`runtime/watcher.py`) must start fast and stay small.
"""

import contextlib
import itertools
import os
import signal
import struct
from pathlib import Path
from typing import Any, NamedTuple

# What a rank writes at each beat: sequence number, completed steps (-1: none known), end, whether
# a first step was completed, and the phase.
RECORD = struct.Struct("<Qqbb30s")
RUNNING, CLOSED, FAILED = 0, 1, 2
# In the order in which a loop passes them, after `step` was counted. A rank that is behind in it
# is the one that the others wait for.
PHASES = ("start", "evaluate", "save", "data", "agree", "step")
_COLLECTIVES = ("/torch/distributed/", "/deepspeed/", "/runtime/dist.py")


class Beat(NamedTuple):
    """The last sign of life of a rank."""

    sequence: int = 0
    step: int = -1
    end: int = RUNNING
    is_tight: bool = False  # a first step was completed: the shorter timeout counts
    phase: str = "start"

    @classmethod
    def unpack(cls, data: bytes) -> "Beat":
        """From the bytes that the rank wrote."""
        sequence, step, end, tight, phase = RECORD.unpack(data)
        return cls(sequence, step, end, bool(tight), phase.rstrip(b"\0").decode(errors="replace"))

    def pack(self) -> bytes:
        """Into as many bytes as ever."""
        return RECORD.pack(
            self.sequence, self.step, self.end, self.is_tight, self.phase.encode()[:30]
        )


class Process(NamedTuple):
    """A process; the start time tells it from a later one with the same number."""

    pid: int
    started: str
    state: str  # R running, S sleeping, D in a device, T stopped, Z dead


def process(pid: int) -> Process | None:
    """The process as /proc shows it; None where there is none."""
    try:
        # The command name in field 2 may hold spaces: count from its closing bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return Process(pid, fields[19], fields[0])
    except (OSError, IndexError):
        return None


def children(pid: int) -> list[Process]:
    """The processes that a process started, in whichever thread, such as loader workers."""
    pids: list[str] = []
    for task in _tasks(pid):
        with contextlib.suppress(OSError):  # this thread has just gone: the others still count
            pids += (task / "children").read_text().split()
    return [found for child in pids if (found := process(int(child)))]


def threads(pid: int) -> str:
    """The kernel's view of every thread: number, name, state, and what it waits in."""
    lines = []
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            found = process(int(task.name))
            name = (task / "comm").read_text().strip()
            waits = (task / "wchan").read_text().strip("0")
            lines.append(f"{task.name} {name} {found.state if found else '?'} {waits}".rstrip())
    return "\n".join(lines)


def _tasks(pid: int) -> list[Path]:
    """The folders of its threads, by number; none where it has gone."""
    try:
        return sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name))
    except OSError:
        return []


def end(found: Process) -> None:
    """Kill a process, unless its number belongs to another one by now."""
    if is_alive(found):
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGKILL)


def is_alive(found: Process) -> bool:
    """Whether this very process still runs."""
    now = process(found.pid)
    return now is not None and now.started == found.started and now.state != "Z"


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; without one it would die of it."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except OSError:
        pass
    return False


def worker_trouble(workers: list[Process]) -> str | None:
    """What is wrong with the first process that should work for a rank and does not."""
    for worker in workers:
        now = process(worker.pid)
        if now is None or now.state == "Z" or now.started != worker.started:
            return f"its worker process {worker.pid} is dead"
        if now.state in "Tt":
            return f"its worker process {worker.pid} is stopped"
    return None


def is_in_collective(stacks: str) -> bool:
    """Whether the main thread waits for other ranks, by the innermost frames of its stack."""
    threads = stacks.split("hread 0x")
    chosen = next((t for t in threads if "(most recent call first)" in t), "")
    for before, thread in itertools.pairwise(threads):
        if before.endswith("Current t"):
            chosen = thread
    frames = [line for line in chosen.splitlines() if line.lstrip().startswith("File ")]
    return any(part in frame for frame in frames[:3] for part in _COLLECTIVES)


def verdict(records: dict[int, dict[str, Any]], beats: dict[int, dict[str, Any]]) -> str:
    """One line that names the rank which the others wait for, from all that is known.

    `records`: what each rank's watcher found, by rank; `beats`: what was last published of every
    rank, for those whose watcher is silent too.
    """
    culprits, why = _culprits(records, beats)
    first = records.get(culprits[0]) or beats[culprits[0]]
    who = f"rank {culprits[0]}" if len(culprits) == 1 else f"ranks {_listed(culprits)}"
    where = f" on {first['host']}" if len({b["host"] for b in beats.values()}) > 1 else ""
    silent = max(record["silent_s"] for record in records.values())
    step = first["step"]
    return (
        f"{who}{where} made no progress for {first.get('silent_s', silent):.0f} s in phase "
        f"'{first['phase']}' at step {step if step >= 0 else 'unknown'} ({why})"
    )


def _culprits(
    records: dict[int, dict[str, Any]], beats: dict[int, dict[str, Any]]
) -> tuple[list[int], str]:
    stopped = [rank for rank, record in records.items() if record["state"] in ("T", "t")]
    if stopped:
        return stopped, f"stopped: state {records[stopped[0]]['state']}"
    known = {**beats, **records}
    places = {rank: _place(beat) for rank, beat in known.items()}
    behind = [rank for rank, place in places.items() if place == min(places.values())]
    workers = {rank: r["worker"] for rank, r in records.items() if r["worker"]}
    if len(behind) < len(known):
        ahead = known[max(places, key=lambda rank: places[rank])]
        wait = f"another rank waits in phase '{ahead['phase']}' at step {ahead['step']}"
        return behind, workers.get(behind[0], wait)
    outside = [rank for rank, record in records.items() if record["in_collective"] is False]
    if workers:
        return list(workers), next(iter(workers.values()))
    if len(records) < len(known):
        silent = sorted(known.keys() - records.keys())
        return silent, "its watcher is silent too: is its machine there?"
    if outside and len(outside) < len(known):
        return outside, "the other ranks wait in a collective"
    if len(known) == 1:
        return outside or list(known), f"state {records[min(records)]['state']}"
    return sorted(known), "no rank stands out"


def _place(beat: dict[str, Any]) -> tuple[int, int]:
    phase = beat["phase"]
    return beat["step"], PHASES.index(phase) if phase in PHASES else len(PHASES)


def _listed(ranks: list[int]) -> str:
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return ", ".join(str(rank) for rank in sorted(ranks)[:8]) + more
