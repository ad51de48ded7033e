"""C1, C2, R4: bytes that change on the disk, files that go astray, pointers that point nowhere."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.checkpoint import newest_verified, verify
from runtime.errors import UserError
from tests.faults.harness import STORAGE, ForkServer
from tests.faults.runs import Runs, losses


@pytest.fixture
def damaged(finished: Runs, runs: Runs) -> Runs:
    """A copy of the calm run, whose newest checkpoints are of steps 8 and 12."""
    shutil.copytree(finished.path("calm"), runs.path("calm"))
    return runs


def newest(runs: Runs) -> Path:
    return runs.checkpoints("calm") / "step_00000012"


def files(checkpoint: Path) -> list[Path]:
    return sorted(p for p in checkpoint.rglob("*") if p.is_file())


def flip(path: Path, byte: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ (1 << bit)]))


def refused(checkpoint: Path, name: str) -> bool:
    """Whether a resume refuses the checkpoint, naming the file, before it reads a number."""
    told: list[str] = []
    found = newest_verified(checkpoint.parent, told.append)
    named = any(name in line and str(checkpoint) in line for line in told)
    return found is not None and found.path != checkpoint and named


def test_a_thousand_flipped_bits_are_found(damaged: Runs) -> None:
    chance = random.Random(0)
    listed = files(newest(damaged))
    assert len(listed) > 6
    for number in range(1000):
        path = listed[number % len(listed)]
        byte, bit = chance.randrange(path.stat().st_size), chance.randrange(8)
        flip(path, byte, bit)
        where = f"bit {bit} of byte {byte} of {path.name} went unseen"
        # A flipped name in the manifest is told as a file that is missing.
        name = "" if path.name == "MANIFEST.json" else path.name
        assert refused(newest(damaged), name), where
        flip(path, byte, bit)
    assert verify(newest(damaged)) == []


def test_a_run_finds_a_flipped_bit_of_any_file_before_its_first_step(damaged: Runs) -> None:
    calm = losses(damaged.path("calm"))
    config = damaged.config("calm", steps=12)
    for path in files(newest(damaged)):
        shutil.rmtree(damaged.path("again"), ignore_errors=True)
        shutil.copytree(damaged.path("calm"), damaged.path("again"))
        copy = damaged.path("again") / path.relative_to(damaged.path("calm"))
        flip(copy, copy.stat().st_size // 2, 3)
        output = damaged.finish(config, f"run.dir={damaged.path('again')}")
        assert "step_00000008, step 8" in output, output
        # A flipped name in the manifest is told as a file that is missing.
        assert path.name in output or path.name == "MANIFEST.json", output
        assert losses(damaged.path("again")) == calm


def swap(a: Path, b: Path) -> None:
    kept = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(kept)


def test_truncated_files_are_refused(damaged: Runs) -> None:
    chance = random.Random(0)
    listed = files(newest(damaged))
    for number in range(200):
        path = listed[number % len(listed)]
        whole = path.read_bytes()
        path.write_bytes(whole[: chance.randrange(len(whole))])
        assert refused(newest(damaged), path.name), f"{path.name}, number {number}"
        path.write_bytes(whole)
    assert verify(newest(damaged)) == []


def test_missing_files_are_refused(damaged: Runs) -> None:
    for path in files(newest(damaged)):
        away = path.rename(damaged.directory / "away")
        assert refused(newest(damaged), path.name), path.name
        away.rename(path)


def test_files_of_other_ranks_are_refused(server: ForkServer, tmp_path: Path) -> None:
    """Two shards of equal size in each other's place."""
    root = tmp_path / "checkpoints"
    root.mkdir()
    arguments = [root, tmp_path / "acknowledged", 2, 0]
    assert server.start(arguments, target=STORAGE, ranks=4).wait() == [0] * 4
    here = root / "step_00000002"
    shards = sorted((here / "training").glob("*.safetensors"))
    first, second = shards[1:3]
    assert first.stat().st_size == second.stat().st_size
    swap(first, second)
    assert refused(here, first.name)
    swap(first, second)
    assert verify(here) == []


def test_files_of_other_steps_are_refused(damaged: Runs) -> None:
    here, before = newest(damaged), damaged.checkpoints("calm") / "step_00000008"
    shards = sorted(here.rglob("*.safetensors"))
    assert len(shards) > 2
    for path in [*shards, here / "training" / "state.json"]:
        stale = before / path.relative_to(here)
        assert stale.stat().st_size == path.stat().st_size or path.suffix == ".json"
        swap(path, stale)
        assert path.name in " ".join(verify(here)), path
        assert path.name in " ".join(verify(before)), path
        swap(path, stale)
    extra = here / "training" / "optimizer_00002.safetensors"
    shutil.copy(shards[-1], extra)
    assert refused(here, extra.name)
    extra.unlink()
    renamed = here.rename(here.with_name("step_00000013"))
    assert refused(renamed, "step 12")


def test_nothing_whole_is_never_step_0(damaged: Runs) -> None:
    for checkpoint in damaged.checkpoints("calm").glob("step_*"):
        path = checkpoint / "model.safetensors"
        flip(path, path.stat().st_size - 1, 0)
    with pytest.raises(UserError, match="none of the 2 checkpoints is whole"):
        newest_verified(damaged.checkpoints("calm"))
    run = damaged.start(damaged.config("calm", steps=14))
    assert run.wait() == [1, 1], run.output()
    assert "move the folder away to start at step 0" in run.output()
    assert losses(damaged.path("calm")).keys() == set(range(1, 13))


def _write(text: str | bytes) -> Callable[[Path], object]:
    data = text.encode() if isinstance(text, str) else text
    return lambda pointer: pointer.write_bytes(data)


def _link(target: str) -> Callable[[Path], object]:
    def change(pointer: Path) -> None:
        pointer.unlink()
        pointer.symlink_to(target)

    return change


POINTERS = {
    "missing": Path.unlink,
    "empty": _write(""),
    "garbage": _write(bytes(range(256)) * 16),
    "outside": _write("../../../etc\n"),
    "absolute": _write("/\n"),
    "names no folder": _write("step_00000999\n"),
    "names an older step": _write("step_00000008\n"),
    "a dangling link": _link("step_00000777"),
    "a link to itself": _link("latest"),
}


@pytest.mark.parametrize("damage", POINTERS)
def test_damaged_pointers_change_nothing(damaged: Runs, damage: str) -> None:
    pointer = damaged.checkpoints("calm") / "latest"
    assert pointer.read_text() == "step_00000012\n"
    POINTERS[damage](pointer)
    output = damaged.finish(damaged.config("calm", steps=13), ranks=1)
    assert "step_00000012, step 12" in output, output
    assert sorted(losses(damaged.path("calm"))) == list(range(1, 14))
    assert pointer.read_text() == "step_00000013\n"
