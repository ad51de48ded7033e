"""Which checkpoints stay, whatever is damaged and whenever the process is killed."""

import itertools
import random
from pathlib import Path

import pytest

from runtime.checkpoint import list_checkpoints, verify
from runtime.checkpoint.commit import sweep
from runtime.checkpoint.format import step_dir
from runtime.checkpoint.retention import delete, to_delete
from tests.runtime.test_checkpoint_format import make


def steps(found):
    return [info.step for info in found]


def test_the_newest_and_the_multiples_stay(tmp_path: Path) -> None:
    for step in range(1, 9):
        make(tmp_path, step)
    assert to_delete(tmp_path, 0) == []
    assert to_delete(tmp_path, 9) == []
    assert steps(to_delete(tmp_path, 2)) == [1, 2, 3, 4, 5, 6]
    assert steps(to_delete(tmp_path, 2, 3)) == [1, 2, 4, 5]


def test_whole_ones_take_the_place_of_damaged_ones(tmp_path: Path) -> None:
    for step in range(1, 6):
        make(tmp_path, step)
    (step_dir(tmp_path, 5) / "config.json").write_text("{}")
    assert steps(to_delete(tmp_path, 2)) == [1, 2]  # 4 and 3 are the two whole ones
    (step_dir(tmp_path, 3) / "config.json").unlink()
    assert steps(to_delete(tmp_path, 2)) == [1, 3]
    (step_dir(tmp_path, 2) / "config.json").unlink()
    assert steps(to_delete(tmp_path, 2)) == [2, 3]
    (step_dir(tmp_path, 1) / "config.json").unlink()
    assert to_delete(tmp_path, 2) == []  # one whole one is left: nothing is risked


def test_two_whole_ones_stay_for_every_pattern_of_damage(tmp_path: Path) -> None:
    for step in range(1, 6):
        make(tmp_path, step)
    for pattern in itertools.product([True, False], repeat=5):
        whole = dict(zip(range(1, 6), pattern, strict=True))
        for keep_last, keep_every in itertools.product((2, 3, 4), (0, 2)):
            gone = steps(
                to_delete(tmp_path, keep_last, keep_every, is_whole=lambda i, w=whole: w[i.step])
            )
            left = [step for step in whole if step not in gone and whole[step]]
            assert len(left) >= min(2, sum(pattern))
            assert not set(range(6 - keep_last, 6)) & set(gone)


def test_what_need_not_be_verified_is_not_read(tmp_path: Path) -> None:
    for step in range(1, 5):
        make(tmp_path, step)
    asked = []
    to_delete(tmp_path, 4, is_whole=asked.append)
    assert asked == []
    to_delete(tmp_path, 3, is_whole=lambda info: asked.append(info.step) or True)
    assert asked == [4, 3]


def test_killed_while_deleting_at_any_moment(tmp_path: Path, monkeypatch) -> None:
    """100 × killed before some file is removed: never half a checkpoint under its name."""
    import os

    rng = random.Random(0)
    real = os.unlink
    for turn in range(100):
        for step in range(1, 6):
            if not step_dir(tmp_path, step).exists():
                make(tmp_path, step)
        left = rng.randrange(9)

        def unlink(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", unlink)
            try:
                for info in to_delete(tmp_path, 2):
                    delete(info)
            except KeyboardInterrupt:
                pass
            else:
                assert left >= 0, turn
        assert all(verify(info.path) == [] for info in list_checkpoints(tmp_path))
        assert len(list_checkpoints(tmp_path)) >= 2
        sweep(tmp_path)
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("was_renamed", [False, True])
def test_a_replaced_step_comes_back(tmp_path: Path, was_renamed: bool) -> None:
    path = make(tmp_path, 3)
    path.rename(tmp_path / ".replaced_step_00000003")
    if was_renamed:
        make(tmp_path, 3)
    (tmp_path / ".tmp_step_00000004").mkdir()
    (tmp_path / ".old_step_00000002").mkdir()
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000003"]
    assert verify(path) == []
