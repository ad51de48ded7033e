"""Killed at any moment and run again: the bytes of an undisturbed run, nothing finished redone."""

import fnmatch
import os
import random
import signal
import time
import traceback
from pathlib import Path

import pytest

from data_prep.config import DataPrepConfig, check
from data_prep.pipeline import prepare
from runtime.config import load
from tests.data_prep.samples import contents, sentence, write_jsonl
from tests.data_prep.test_executors import write_config

WORKERS = 2


def start(config: Path) -> int:
    """A run in a process group of its own; a fork starts faster than an interpreter."""
    pid = os.fork()
    os.setpgid(pid, pid)  # in both, so that neither goes on before it is done
    if pid:
        return pid
    log = os.open(config.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        prepare(load(DataPrepConfig, config, (), check))
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def complete(config: Path) -> None:
    """A run that nobody disturbs."""
    status = os.waitpid(start(config), 0)[1]
    assert status == 0, config.with_suffix(".log").read_text()


def make_input(tmp_path: Path) -> None:
    rng = random.Random(5)
    texts = [f"{n} {' '.join(sentence(rng, 14) for _ in range(3))}" for n in range(400)]
    texts += [text.replace("river", "brook", 1) for text in texts[::7]] + texts[::9]
    write_jsonl(tmp_path / "x.jsonl", texts)


FINISHED = ("clean_?????.json", "unit_?????.json", "*.done")
# What is published before a unit's report, by the report's name.
BEFORE = {
    "clean": ("unit_{}.signatures", "unit_{}.signed.json"),
    "unit": ("*_{}.bin", "*_{}.idx"),
}


def stamps(output: Path) -> dict[str, int]:
    """Of what is finished: a unit that was killed before its report is rightly made again."""
    every = {path.name: path for path in output.rglob("*")}
    names = [name for pattern in FINISHED for name in fnmatch.filter(every, pattern)]
    for report in tuple(names):
        kind, _, unit = report.removesuffix(".json").partition("_")
        for pattern in BEFORE.get(kind, ()):
            names += fnmatch.filter(every, pattern.format(unit))
    return {name: every[name].stat().st_mtime_ns for name in names}


def until_gone(group: int) -> None:
    """Workers whose parent was killed notice by themselves; what they finish is whole."""
    for _ in range(600):
        alive = [
            stat
            for path in Path("/proc").glob("[0-9]*/stat")
            if (stat := fields(path)) and stat[2] == str(group) and stat[0] != "Z"
        ]
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes of a killed run are still there: {alive}")


def fields(path: Path) -> list[str]:
    """State, parent, process group …; empty where the process has gone."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def storm(tmp_path: Path, kills: int, seed: int) -> None:
    make_input(tmp_path)
    rules = {"dedup__exact": True, "dedup__near": True, "workers": WORKERS}
    calm, stormy = (write_config(tmp_path, name, **rules) for name in ("calm", "stormy"))
    began = time.monotonic()
    complete(calm)
    whole_s = time.monotonic() - began
    output, rng = tmp_path / "stormy", random.Random(seed)
    finished: dict[str, int] = {}
    for _ in range(kills):
        pid = start(stormy)
        time.sleep(rng.uniform(0.02, 0.7 * whole_s))
        group_killed = rng.random() < 0.5  # else the workers are left to notice
        (os.killpg if group_killed else os.kill)(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        until_gone(pid)
        if (output / "manifest.json").exists():
            break
        now = stamps(output)
        redone = {name for name, stamp in finished.items() if now.get(name) != stamp}
        assert not redone, redone
        finished = now
    complete(stormy)
    assert contents(output) == contents(tmp_path / "calm")
    assert not [p for p in output.rglob("*") if ".tmp-" in p.name]


def test_a_few_kills(tmp_path):
    storm(tmp_path, kills=4, seed=1)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_a_hundred_kills(tmp_path, seed):
    storm(tmp_path, kills=5, seed=100 + seed)
