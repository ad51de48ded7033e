"""Batches made by worker processes: the same ones, and every way in which a worker can end."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import Loader
from data_prep.workers import Workers
from runtime.errors import UserError
from tests.data_prep.made import made
from tests.data_prep.samples import make_texts, write_jsonl
from tests.processes import ROOT, environment

OPTIONS = {"seq_len": 16, "global_batch_size": 8, "seed": 3}


@pytest.fixture(scope="module")
def working():
    """Two workers that make what `made` says; started once, for that takes seconds."""
    workers = Workers(made, 2)
    yield workers
    workers.close()


def following(step: int) -> int:
    return step + 1


def same(one, two):
    return one.keys() == two.keys() and all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
        for a, b in ((np.asarray(one[name]), np.asarray(two[name])) for name in one)
    )


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:  # where it goes between the opening and the reading, ESRCH
        return False


def gone_within(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_arrays_arrive_as_they_were_made(working) -> None:
    pids = set()
    for step in range(6):
        batch = working.take(step, following)
        pids.add(int(batch["pid"]))
        expected = made(step) | {"pid": batch["pid"]}
        assert same(batch, expected)
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_steps_that_are_no_longer_wanted_are_dropped(working) -> None:
    wanted = [0, 1, 40, 41, 2, 3, 4, 100, 103, 102]  # asked for ahead: always the next ones
    assert [int(working.take(step, following)["step"]) for step in wanted] == wanted


def test_an_error_inside_arrives_in_its_turn_and_the_worker_goes_on(working) -> None:
    def past_the_exit(step: int) -> int:
        return 16 if step == 14 else step + 1

    assert int(working.take(12, past_the_exit)["step"]) == 12
    with pytest.raises(UserError, match=r"^a shard cannot be read$") as caught:
        working.take(13, past_the_exit)
    assert caught.value.status == 2
    with pytest.raises(
        UserError, match=r"^data worker \d \(pid \d+\) failed at data step 14: ValueError: a mis"
    ):
        working.take(14, past_the_exit)
    assert int(working.take(16, past_the_exit)["step"]) == 16
    working.take(10, lambda step: step + 3)  # asks for 13 too
    assert int(working.take(20, following)["step"]) == 20, "an error of a dropped step is none"


def test_signals_are_the_trainers(working) -> None:
    pids = {int(working.take(step, following)["pid"]) for step in range(4)}
    for pid in pids:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    assert {int(working.take(step, following)["pid"]) for step in range(4, 12)} == pids


def test_an_exit_is_named() -> None:
    workers = Workers(made, 1)
    with pytest.raises(
        UserError,
        match=r"^data worker 0 \(pid \d+\) ended with status 3, see above at data step 15$",
    ):
        workers.take(15, following)
    workers.close()
    workers.close()


@pytest.mark.parametrize(
    ("number", "mend"), [(signal.SIGKILL, "out of memory"), (signal.SIGBUS, "verify the data")]
)
def test_a_killed_worker_is_named_at_once(number: int, mend: str) -> None:
    workers = Workers(made, 2)
    pids = [int(workers.take(step, following)["pid"]) for step in range(2)]
    # A core would be written before the socket closes, and so before the death is noticed.
    resource.prlimit(pids[1], resource.RLIMIT_CORE, (0, 0))
    os.kill(pids[1], number)
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        [workers.take(step, following) for step in range(2, 12)]
    assert time.monotonic() - begin < 5
    told = str(caught.value)
    assert told.startswith(f"data worker 1 (pid {pids[1]}) was killed by signal {int(number)} (")
    assert mend in told
    assert "\n" not in told
    assert alive(pids[0])
    workers.close()
    assert gone_within(pids, 0)


def test_a_loader_with_workers_gives_the_same_batches_wherever_it_goes(prepared) -> None:
    plain = Loader([(prepared, 1.0)], **OPTIONS, document_boundaries=True)
    loader = Loader([(prepared, 1.0)], **OPTIONS, document_boundaries=True, workers=2)

    def go_on(count: int) -> None:
        for one, other in zip(islice(plain, count), islice(loader, count), strict=True):
            assert all(tensor.dtype == other[name].dtype for name, tensor in one.items())
            assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
            assert other["input_ids"].is_contiguous()
            assert plain.state_dict() == loader.state_dict()

    assert loader.worker_pids == []
    go_on(5)
    assert len(set(loader.worker_pids)) == 2
    state = json.loads(json.dumps(loader.state_dict()))
    assert state["step"] == 5, "what was made ahead is not in the state"
    go_on(3)
    for one in (plain, loader):
        one.skip(9, 11)  # of which some are made already
    go_on(5)
    for one in (plain, loader):
        one.load_state_dict(state)
    go_on(5)
    loader.close()
    go_on(3)  # by new ones
    loader.close()


def test_a_shard_that_cannot_be_read_says_so_itself(run, tmp_path: Path) -> None:
    run(write_jsonl(tmp_path / "in.jsonl", make_texts(60)), "out")
    loader = Loader([(tmp_path / "out", 1.0)], **OPTIONS, workers=2)
    for path in (tmp_path / "out").glob("train*.idx"):
        path.unlink()
    with pytest.raises(UserError, match=r"^.*train_00000.idx: cannot be read: No such file"):
        next(loader)
    loader.close()


TRAINER = """
import os, sys, time
from data_prep import Loader
os.umask(0o077)
loader = Loader([(sys.argv[1], 1.0)], seq_len=16, global_batch_size=8, workers=2)
for _ in range(4):
    next(loader)
print(*loader.worker_pids, flush=True)
exec(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("then", "status"),
    [
        ("time.sleep(60)", -9),  # killed by us
        ("sys.exit(5)", 5),  # without close
        ("os._exit(7)", 7),  # as trainers leave
    ],
)
def test_no_worker_outlives_its_trainer(prepared, then: str, status: int) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(prepared), then],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(pids) == 2
    if status == -9:
        for pid in pids:
            assert "Umask:\t0077" in Path(f"/proc/{pid}/status").read_text()
        for pid in [*pids, trainer.pid]:
            assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text(), "none could be left"
        trainer.kill()
    assert trainer.wait(timeout=30) == status
    assert gone_within(pids, 10)
