import os
import random
import shutil
from pathlib import Path

import orjson
import pytest

from runtime.checkpoint import newest_verified, verify
from runtime.checkpoint.format import MANIFEST, hash_file, step_dir
from runtime.errors import UserError


def make(root: Path, step: int) -> Path:
    path = step_dir(root, step)
    (path / "training").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(random.Random(step).randbytes(5000))
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "training" / "state.json").write_text(f'{{"step": {step}}}')
    files = [p for p in path.rglob("*") if p.is_file()]
    entries = {
        p.relative_to(path).as_posix(): {"size": p.stat().st_size, "sha256": hash_file(p)}
        for p in files
    }
    (path / MANIFEST).write_bytes(orjson.dumps({"schema": 1, "step": step, "files": entries}))
    return path


def test_a_whole_checkpoint_has_no_problem(tmp_path: Path) -> None:
    assert verify(make(tmp_path, 3)) == []


def test_every_flipped_bit_is_found_and_its_file_named(tmp_path: Path) -> None:
    path = make(tmp_path, 3)
    rng = random.Random(0)
    for file in [p for p in path.rglob("*") if p.is_file()]:
        data = file.read_bytes()
        for _ in range(25):
            damaged = bytearray(data)
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            problems = verify(path)
            # A flip inside the manifest may also make it speak of another file.
            assert problems, f"{file} damaged unnoticed"
            if file.name != MANIFEST:
                assert str(file) in problems[0]
        file.write_bytes(data)
    assert verify(path) == []


def test_truncated_missing_extra_and_swapped_files(tmp_path: Path) -> None:
    path = make(tmp_path, 3)
    weights = path / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    assert "4999 bytes, expected 5000" in verify(path)[0]
    weights.unlink()
    assert verify(path) == [f"{weights}: missing"]
    other = make(tmp_path / "other", 4)
    shutil.copy(other / "model.safetensors", weights)  # same size, another step
    assert "sha256 differs" in verify(path)[0]
    weights.write_bytes(data)
    (path / "pytorch_model.bin").write_bytes(b"extra")
    assert f"{path / 'pytorch_model.bin'}: not in {MANIFEST}" in verify(path)


def test_a_linked_folder_is_not_in_the_manifest(tmp_path: Path) -> None:
    path = make(tmp_path, 3)
    (path / "more").symlink_to(tmp_path)
    assert verify(path) == [f"{path / 'more'}: not in {MANIFEST}"]


def test_a_folder_that_is_removed_meanwhile_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As retention does."""
    folder, real = make(tmp_path, 3) / "training", os.scandir

    def scandir(looked_into):
        if str(looked_into) == str(folder):
            (folder / "state.json").unlink(missing_ok=True)
            folder.rmdir()
        return real(looked_into)

    monkeypatch.setattr(os, "scandir", scandir)
    assert verify(folder.parent) in ([], [f"{folder / 'state.json'}: missing"])
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_can_not_point_outside(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, 3)
    manifest = orjson.loads((path / MANIFEST).read_bytes())
    manifest["files"][name] = {"size": 0, "sha256": "0" * 64}
    (path / MANIFEST).write_bytes(orjson.dumps(manifest))
    assert "outside the checkpoint" in verify(path)[0]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"schema":1,"step":3,"files":[]}', b"\xff"])
def test_damaged_manifests(tmp_path: Path, text: bytes) -> None:
    path = make(tmp_path, 3)
    (path / MANIFEST).write_bytes(text)
    assert "damaged" in verify(path)[0]
    (path / MANIFEST).unlink()
    assert "never finished" in verify(path)[0]


def test_another_schema_and_a_renamed_directory(tmp_path: Path) -> None:
    path = make(tmp_path, 3)
    renamed = path.rename(step_dir(tmp_path, 4))
    assert "not the step that its name says" in verify(renamed)[0]
    manifest = orjson.loads((renamed / MANIFEST).read_bytes())
    (renamed / MANIFEST).write_bytes(orjson.dumps({**manifest, "schema": 99}))
    assert "schema 99" in verify(renamed)[0]


def test_newest_verified_falls_back_and_says_so(tmp_path: Path) -> None:
    assert newest_verified(tmp_path) is None
    for step in (10, 20, 30):
        make(tmp_path, step)
    (tmp_path / "latest").write_text("step_99999999\n")  # a hint, never the truth
    (tmp_path / ".tmp_step_00000040").mkdir()
    (step_dir(tmp_path, 30) / "config.json").write_text("{}")
    said: list[str] = []
    found = newest_verified(tmp_path, said.append)
    assert found is not None
    assert found.step == 20
    assert Path(found) == step_dir(tmp_path, 20)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path)
    assert newest_verified(tmp_path / "run", said.append).step == 20
    assert "step_00000030/config.json" in said[0]


def test_no_whole_checkpoint_is_an_error_not_step_0(tmp_path: Path) -> None:
    (make(tmp_path, 10) / MANIFEST).unlink()
    with pytest.raises(UserError, match="none of the 1 checkpoints is whole"):
        newest_verified(tmp_path, lambda _: None)
