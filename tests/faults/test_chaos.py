"""Chaos equals calm: a run that meets one random fault after another ends as the undisturbed one.

Bad batches are bad because of their data, so that the calm run meets them as well. All other faults
are made by the process that they strike, at a step or at a change of the disk that the seed says;
flipped bits strike between two starts. A failure prints the whole log of faults.
"""

import random
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.loader import Loader
from runtime.checkpoint import list_checkpoints, verify
from tests.faults.injection import row_digests
from tests.faults.runs import Runs, last_digest, losses, steps_saved
from tests.faults.test_full_disk import HURRY

SEQ_LEN = 48  # of short rows some are alike, and a bad batch would strike more than once
HANG_S = 10.0  # longer than a save on a busy disk
KINDS = (
    "SIGKILL of rank 0",
    "SIGKILL of rank 1",
    "SIGKILL of both",
    "SIGTERM",
    "SIGSTOP",
    "exception",
    "full disk",
    "flipped bit",
)


class Chaos:
    """Faults in the order and at the places that a seed says, against the run `chaos`."""

    def __init__(self, runs: Runs, steps: int, faults: int, seed: int) -> None:
        self.runs, self.steps = runs, steps
        self.chance = random.Random(seed)
        self.between = steps // (faults + 1)  # the faults are spread over the whole run
        rounds = -(-faults // len(KINDS))
        self.kinds = [k for _ in range(rounds) for k in self.chance.sample(KINDS, len(KINDS))]
        self.kinds = self.kinds[:faults]
        self.log = [f"seed {seed}"]
        self.bad = bad_batches(runs, self.chance.sample(range(3, steps - 3), max(2, steps // 50)))
        self.keys: dict[str, Any] = {
            "steps": steps,
            "data__seq_len": SEQ_LEN,
            "checkpoint__every_steps": 2,
            "checkpoint__keep_last": 3,
            "health__hang_timeout_s": HANG_S,
        }

    def calm(self) -> None:
        """The run without any fault but that of its data."""
        self.runs.finish(self.runs.config("calm", **self.keys), faults=[self.bad])

    def strike_all(self) -> None:
        """One start for each fault, and one to the end."""
        config = self.runs.config("chaos", **self.keys)
        for number, kind in enumerate(self.kinds, 1):
            rank, where = self.chance.randrange(2), self.chance.randint(-2, 2)
            if kind == "flipped bit":
                self.flip_a_bit()
            step = max(1, number * self.between + where - self.newest())
            faults = [self.bad, HURRY, *self.faults(kind, rank, step)]
            began = time.monotonic()
            run = self.runs.start(config, faults=faults)
            statuses = run.wait_then_kill(patience_s=3 * HANG_S)
            self.log.append(f"{kind}, {faults[2:]}: {statuses}, {time.monotonic() - began:.1f} s")
            self.check(kind, rank, statuses, run.output())
        self.log.append("to the end")
        self.runs.finish(config, faults=[self.bad])

    def faults(self, kind: str, rank: int, step: int) -> list[dict[str, Any]]:
        """What a start is given, so that it happens."""
        under = str(self.runs.checkpoints("chaos"))
        if kind == "flipped bit":
            return [{"kind": "step", "do": "SIGKILL", "step": step}]
        if kind == "full disk":
            after = self.chance.randrange(60_000)
            return [
                {"kind": "write", "rank": rank, "do": "ENOSPC", "after": after, "under": under}
                | {"times": 10**6, "first": step}
            ]
        where: dict[str, Any] = {"kind": "step", "step": step, "rank": rank}
        if kind.startswith("SIGKILL"):
            where["rank"] = 1 if kind == "SIGKILL of rank 1" else 0
            if self.chance.random() < 0.6:  # in the middle of a save
                del where["step"]
                op = self.chance.randint(1, 5 if where["rank"] else 20)
                where |= {"kind": "op", "op": op, "under": under, "first": step}
            if kind == "SIGKILL of both":
                return [where | {"do": "SIGKILL", "rank": r} for r in range(2)]
            return [where | {"do": "SIGKILL"}]
        return [where | {"do": "raise" if kind == "exception" else kind}]

    def check(self, kind: str, rank: int, statuses: list[int], output: str) -> None:
        """Each fault must end the start in its own way, or the test would test nothing."""
        expected = {
            "SIGTERM": statuses == [75, 75],
            "full disk": statuses == [74, 74],
            "exception": statuses[rank] == 1 and 0 not in statuses,
            "SIGKILL of rank 0": statuses[0] == -9 and statuses[1] != 0,
            "SIGKILL of rank 1": statuses[1] == -9 and statuses[0] != 0,
        }.get(kind, 0 not in statuses)
        if kind == "flipped bit" and not self.log[-2].startswith("no bit"):
            expected = expected and "passed over" in output
        assert expected, "\n".join([*self.log, output])

    def newest(self) -> int:
        """The step that the next start goes on from."""
        return max(steps_saved(self.runs.checkpoints("chaos")), default=0)

    def flip_a_bit(self) -> None:
        """In any file of the newest checkpoint, where there is one before it; in any bit."""
        whole = [i.path for i in list_checkpoints(self.runs.checkpoints("chaos")) if good(i.path)]
        if len(whole) < 2:
            self.log.append("no bit flipped: fewer than two checkpoints")
            return
        files = sorted(p for p in whole[-1].rglob("*") if p.is_file())
        path = self.chance.choices(files, [p.stat().st_size for p in files])[0]
        data = bytearray(path.read_bytes())
        place, bit = self.chance.randrange(len(data)), self.chance.randrange(8)
        data[place] ^= 1 << bit
        path.write_bytes(data)
        self.log.append(f"bit {bit} of byte {place} of {path}")


def good(checkpoint: Path) -> bool:
    return not verify(checkpoint)


def bad_batches(runs: Runs, data_steps: list[int]) -> dict[str, Any]:
    loader = Loader([(str(runs.corpus), 1.0)], seq_len=SEQ_LEN, global_batch_size=8, seed=3)
    rows = [row_digests(loader.batch(step)["input_ids"])[5] for step in data_steps]
    return {"kind": "poison", "rows": rows, "what": "loss nan"}


def chaos_equals_calm(runs: Runs, steps: int, faults: int, seed: int) -> None:
    chaos = Chaos(runs, steps, faults, seed)
    chaos.calm()
    chaos.strike_all()
    log = "\n".join(chaos.log)
    expected, found = losses(runs.path("calm")), losses(runs.path("chaos"))
    assert list(expected) == list(range(1, steps + 1))
    different = [step for step in expected if found.get(step) != expected[step]]
    assert found == expected, f"losses differ from step {different[:1]} on\n{log}"
    digests = [last_digest(runs.checkpoints(name), steps) for name in ("chaos", "calm")]
    assert digests[0] == digests[1], log


@pytest.mark.slow
def test_sixty_steps_and_eight_faults(runs: Runs) -> None:
    chaos_equals_calm(runs, steps=60, faults=8, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [10, 11])
def test_three_hundred_steps_and_fifty_faults(runs: Runs, seed: int) -> None:
    chaos_equals_calm(runs, steps=300, faults=50, seed=seed)
