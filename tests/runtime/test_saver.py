"""Saves beside training: what is copied when, what is tried again, and what is never lost."""

import errno
import os
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from runtime.checkpoint import list_checkpoints, newest_verified, verify
from runtime.checkpoint.format import hash_file, step_dir
from runtime.checkpoint.hashed import HashedFile
from runtime.checkpoint.reader import TrainingState
from runtime.errors import EXIT_IO, UserError
from tests.runtime.saver_toys import Toy, new_saver


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("runtime.checkpoint.saver.RETRY_PAUSES_S", (0.01, 0.01, 0.01))


@pytest.fixture
def disk(monkeypatch):
    """A disk that can be stopped, and that can fail some times."""
    real = os.write
    state = SimpleNamespace(open=threading.Event(), failures=0, errno=errno.ENOSPC, writes=0)
    state.open.set()

    def write(handle, data):
        state.open.wait(30)
        state.writes += 1
        if state.failures > 0:
            state.failures -= 1
            raise OSError(state.errno, os.strerror(state.errno))
        return real(handle, data)

    monkeypatch.setattr(os, "write", write)
    return state


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def value_in(root, step):
    stored = TrainingState(step_dir(root, step)).read("weight", "master", 0, 1000)
    weights = (step_dir(root, step) / "weight.bin").read_bytes()
    assert stored.numpy().tobytes() == weights
    assert stored.unique().numel() == 1
    return float(stored[0])


def test_what_training_changes_after_the_call_is_not_saved(tmp_path, disk):
    toy, saver = Toy(), new_saver(tmp_path)
    for step in (1, 2, 3):
        toy.weight.fill_(step)
        disk.open.clear()
        saver.save(step, toy, toy, {"step": step})
        toy.weight.fill_(-1)
        assert saver.committed == (step - 1 or None)
        assert not saver.failed()
        disk.open.set()
        saver.wait()
        assert saver.committed == step
        assert value_in(tmp_path, step) == step
    assert TrainingState(step_dir(tmp_path, 3)).values["optimizer_steps"] == 7
    assert [verify(info.path) for info in list_checkpoints(tmp_path)] == [[], []]


def test_one_save_is_in_flight_and_the_next_waits_for_it(tmp_path, disk):
    toy, saver = Toy(), new_saver(tmp_path)
    toy.weight.fill_(1)
    disk.open.clear()
    saver.save(1, toy, toy, {"step": 1})
    begun = time.monotonic()
    threading.Timer(0.3, disk.open.set).start()
    saver.save(2, toy, toy, {"step": 2})
    assert time.monotonic() - begun > 0.2
    assert saver.committed == 1
    saver.wait()
    assert value_in(tmp_path, 1) == 1


def test_room_in_memory_is_used_again(tmp_path):
    toy, saver = Toy(), new_saver(tmp_path)
    places = set()
    for step in (1, 2, 3):
        saver.save(step, toy, toy, {"step": step})
        places.add(tuple(room.data_ptr() for room in saver._memory._rooms.values()))
    saver.wait()
    assert len(places) == 1


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG])
def test_three_failures_are_tried_again(tmp_path, disk, background, number):
    said = []
    toy, saver = Toy(), new_saver(tmp_path, background=background, said=said)
    toy.weight.fill_(5)
    disk.failures, disk.errno = 3, number
    saver.save(1, toy, toy, {"step": 1})
    toy.weight.fill_(6)
    saver.wait()
    assert saver.committed == 1
    assert value_in(tmp_path, 1) == 5
    assert sum("not saved yet" in line and os.strerror(number) in line for line in said) == 3
    assert [p.name for p in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("background", [True, False])
def test_the_fourth_failure_ends_the_run_with_what_was_there_intact(tmp_path, disk, background):
    toy, saver = Toy(), new_saver(tmp_path, background=background)
    saver.save(1, toy, toy, {"step": 1})
    saver.wait()
    disk.failures = 4
    if background:
        saver.save(2, toy, toy, {"step": 2})
        until(saver.failed)
    with pytest.raises(UserError, match=r"step 2 could not be saved.*step 1 is intact") as caught:
        saver.save(3, toy, toy, {"step": 3}) if background else saver.save(2, toy, toy, {})
    assert caught.value.status == EXIT_IO
    assert "optimizer_00000.safetensors" in str(caught.value)
    assert saver.committed == 1
    assert [info.step for info in list_checkpoints(tmp_path)] == [1]
    assert verify(step_dir(tmp_path, 1)) == []
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_what_would_fail_again_is_tried_once(tmp_path):
    toy, saver = Toy(), new_saver(tmp_path, background=False)
    toy.error = ValueError("a number that float16 cannot hold")
    with pytest.raises(UserError, match="float16 cannot hold"):
        saver.save(1, toy, toy, {"step": 1})
    assert toy.exports == 1
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_full_is_not_written_to(tmp_path, disk, monkeypatch):
    said = []
    toy, saver = Toy(), new_saver(tmp_path, said=said)
    free = 9700  # 4,000 bytes of slices, 4,000 of weights
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    saver.save(1, toy, toy, {"step": 1})
    saver.wait()
    assert [line for line in said if "the next checkpoint needs" in line]
    free, writes = 9500, disk.writes
    saver.save(2, toy, toy, {"step": 2})
    with pytest.raises(UserError, match="to write"):
        saver.wait()
    assert disk.writes == writes
    said.clear()
    free = 11000
    new_saver(tmp_path, said=said).look_ahead()
    assert said == []  # 1.2 × what step 1 takes
    free = 9700
    new_saver(tmp_path, said=said).look_ahead()
    new_saver(tmp_path / "new", said=said).look_ahead(9000)
    new_saver(tmp_path / "new", said=said).look_ahead(8000)
    assert ["the next checkpoint needs" in line for line in said] == [True, True]


def test_bytes_that_move_are_a_sign_of_life_and_a_disk_that_hangs_is_not(tmp_path, disk):
    beats = []
    toy, saver = Toy(), new_saver(tmp_path, beats=beats)
    disk.open.clear()
    saver.save(1, toy, toy, {"step": 1})
    waiting = threading.Thread(target=saver.wait)
    waiting.start()
    time.sleep(1.8)
    assert len(beats) <= 1  # the first look knows no bytes before
    disk.open.set()
    waiting.join(30)
    assert saver.committed == 1


def test_older_ones_are_verified_before_anything_is_deleted(tmp_path):
    said = []
    toy, first = Toy(), new_saver(tmp_path, keep_last=0, background=False)
    for step in range(1, 5):
        first.save(step, toy, toy, {"step": step})
    (step_dir(tmp_path, 4) / "weight.bin").write_bytes(b"x")
    later = new_saver(tmp_path, keep_last=2, background=False, said=said)
    later.save(5, toy, toy, {"step": 5})
    assert [info.step for info in list_checkpoints(tmp_path)] == [3, 4, 5]
    assert any("not counted" in line and "step_00000004" in line for line in said)
    later.save(6, toy, toy, {"step": 6})
    assert [info.step for info in list_checkpoints(tmp_path)] == [5, 6]
    newest = newest_verified(tmp_path)
    assert newest is not None
    assert newest.step == 6


def test_multiples_stay(tmp_path):
    toy, saver = Toy(), new_saver(tmp_path, keep_last=2, keep_every=3)
    for step in range(1, 9):
        saver.save(step, toy, toy, {"step": step})
    saver.wait()
    assert [info.step for info in list_checkpoints(tmp_path)] == [3, 6, 7, 8]


def test_a_step_that_is_saved_again_takes_the_place_of_the_other(tmp_path):
    toy, saver = Toy(), new_saver(tmp_path)
    for value in (1, 2):
        toy.weight.fill_(value)
        saver.save(4, toy, toy, {"step": 4})
    saver.wait()
    assert value_in(tmp_path, 4) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000004"]


@pytest.mark.parametrize("sizes", [[0], [1], [3, 2**18, 5], [2**18 - 1, 2**24 + 7], [40 * 2**20]])
def test_the_hash_is_that_of_the_file(tmp_path, sizes):
    seen = []
    file = HashedFile(tmp_path / "f", seen.append)
    whole = b""
    for number, size in enumerate(sizes):
        data = torch.full((size,), number + 1, dtype=torch.uint8).numpy()
        assert file.write(data.data) == size
        whole += data.tobytes()
    file.sync()
    file.close()
    assert (tmp_path / "f").read_bytes() == whole
    assert file.sha256() == hash_file(tmp_path / "f")
    assert file.size == sum(seen) == len(whole)
