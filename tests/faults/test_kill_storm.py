"""R1: processes are killed while they save, again and again, at moments nobody chose."""

import random
import time
from pathlib import Path

import pytest

from runtime.checkpoint import newest_verified
from tests.faults.harness import STORAGE, ForkServer, Run, until
from tests.faults.storage_worker import torn

VICTIMS = ((0,), (1,), (0, 1))


def acknowledged(path: Path) -> int:
    """The newest step that the ranks were told is saved; 0 before there was one."""
    lines = path.read_text().splitlines() if path.exists() else []
    return int(lines[-1]) if lines else 0


def until_it_saves(run: Run) -> None:
    until(lambda: "begins after" in run[0].output() or run[0].has_ended(), "the first save")
    assert run[0].status is None, run.output()


def wait_for(run: Run, told: Path, saves: int) -> None:
    """Until so many saves more are acknowledged."""
    before = acknowledged(told)
    until(lambda: acknowledged(told) >= before + saves or run[0].has_ended(0.001), "a save")
    assert run[0].status is None, run.output()


def storm(server: ForkServer, directory: Path, kills: int, seed: int) -> int:
    """Kill ranks `kills` times while they save; returns how many saves counted."""
    root, told = directory / "checkpoints", directory / "acknowledged"
    root.mkdir()
    chance, save_s = random.Random(seed), 0.02
    for kill in range(kills):
        run = server.start([root, told, 10**9, kill % 2], target=STORAGE, ranks=2)
        until_it_saves(run)
        begun, saves = time.monotonic(), chance.randint(0, 2)
        wait_for(run, told, saves=saves)
        if saves:  # then a moment somewhere in the next one, on however slow a machine
            save_s = (time.monotonic() - begun) / saves
        run[0].has_ended(chance.uniform(0, 1.2 * save_s))
        for rank in chance.choice(VICTIMS):
            run[rank].kill()
        if chance.random() < 0.5:  # the others notice, and may write on until then
            run.wait_then_kill(patience_s=0.2)
        run.kill()
        where = f"after kill {kill}, seed {seed}:\n{run.output()}"
        found = newest_verified(root)
        step = found.step if found else 0
        assert step >= acknowledged(told), f"acknowledged, and lost, {where}"
        assert found is None or torn(found.path, found.step) == [], where
        assert len(list(root.glob(".tmp_*"))) <= 1, f"left by older crashes, {where}"
    return acknowledged(told)


@pytest.mark.slow
def test_200_kills_lose_nothing(server: ForkServer, tmp_path: Path) -> None:
    assert storm(server, tmp_path, kills=200, seed=1) > 100


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_2000_kills_lose_nothing(server: ForkServer, tmp_path: Path) -> None:
    assert storm(server, tmp_path, kills=2000, seed=2) > 1000
