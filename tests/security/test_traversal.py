"""X4: names in files and arguments that would lead out of their directory."""

import json
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_prep.manifest import load as load_data
from model.hf import CheckpointError, load_pretrained
from model.hf.convert import import_model
from model.hf.manifest import damages
from pretrain.config import PretrainConfig
from runtime.checkpoint import newest_verified, verify
from runtime.checkpoint.format import MANIFEST, hash_file
from runtime.config import ConfigError, load
from runtime.errors import UserError
from tests.faults.runs import Runs

NAMES = [
    "..",
    "../outside.bin",
    "../../outside.bin",
    "x/../../outside.bin",
    "./../outside.bin",
    "/etc/passwd",
    "//etc/passwd",
    "/proc/self/environ",
    "/dev/zero",
    "/dev/stdin",
    "training/../../outside.bin",
    "..\\outside.bin",
    "C:\\outside.bin",
    "\\\\host\\share\\outside.bin",
    "~/outside.bin",
    "$HOME/outside.bin",
    "outside.bin\0.safetensors",
    "outside\n.safetensors",
    "\x1b[2Joutside.safetensors",
    "file:///etc/passwd",
    "https://example.com/outside.safetensors",
    "link/outside.bin",
    "link.safetensors",
    "%2e%2e/outside.safetensors",
    "．．/outside.safetensors",
    "a" * 300 + ".safetensors",
]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that no reader must take, with what would make it look right."""
    path = tmp_path / "outside.bin"
    path.write_bytes(b"outside")
    return path


@pytest.fixture
def checkpoint(runs: Runs, outside: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "step_00000002"
    shutil.copytree(runs.checkpoints("good") / "step_00000002", directory)
    return directory


def linked(directory: Path) -> None:
    """Links out of the directory, as an archive can bring them."""
    (directory / "link").symlink_to(directory.parent)
    (directory / "link.safetensors").symlink_to(directory.parent / "outside.bin")


def test_there_are_enough() -> None:
    assert len(set(NAMES)) >= 25


@pytest.mark.parametrize("name", NAMES)
def test_manifests(name: str, checkpoint: Path, outside: Path) -> None:
    linked(checkpoint)
    path = checkpoint / MANIFEST
    manifest = orjson.loads(path.read_bytes())
    manifest["files"][name] = {"size": outside.stat().st_size, "sha256": hash_file(outside)}
    path.write_bytes(orjson.dumps(manifest))
    for problems in (verify(checkpoint), damages(checkpoint)):
        assert any(MANIFEST in line or "missing" in line or "read" in line for line in problems)
        assert not any("\n" in line or "\x1b" in line for line in problems)
    with pytest.raises(UserError, match="none of the 1 checkpoints is whole"):
        newest_verified(checkpoint.parent, lambda _: None)


@pytest.mark.parametrize("name", NAMES)
def test_weight_maps(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (checkpoint / "link").symlink_to(tmp_path)
    content = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(content))
    for action in (
        lambda: load_pretrained(checkpoint),
        lambda: import_model(checkpoint, tmp_path / "imported"),
    ):
        with pytest.raises(CheckpointError) as caught:
            action()
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)


PLACES: list[list[Any]] = [
    ["shards", 0, "file"],
    ["shards", 0, "index", "file"],
    ["tokenizer", "file"],
    ["tokenizer", "config", "file"],
    ["quarantine", "file"],
]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "link.safetensors" and "aaa" not in n])
def test_prepared_directories(name: str, runs: Runs, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(runs.corpus, tmp_path / "data"))
    good = json.loads((directory / "manifest.json").read_text())
    for *parents, last in PLACES:
        manifest = json.loads(json.dumps(good))
        at = manifest
        for parent in parents:
            at = at[parent]
        at[last] = name
        (directory / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError) as caught:
            load_data(directory)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "link.safetensors"])
def test_run_names(name: str, runs: Runs) -> None:
    with pytest.raises(ConfigError):
        load(PretrainConfig, runs.directory / "good.yaml", [f"run.name={json.dumps(name)}"])


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "-x", "a/b", ""])
def test_more_run_names(name: str, runs: Runs) -> None:
    """The default run directory is runs/NAME."""
    with pytest.raises(ConfigError):
        load(PretrainConfig, runs.directory / "good.yaml", [f"run.name={json.dumps(name)}"])


@pytest.mark.parametrize("name", [*NAMES[:-1], "gpt2", "openai/gpt2", "hf://gpt2", "main"])
def test_models_are_local_directories(name: str, tmp_path: Path) -> None:
    """No name is looked up anywhere else."""
    for action in (lambda: load_pretrained(name), lambda: import_model(name, tmp_path / "x")):
        with pytest.raises(CheckpointError):
            action()


@pytest.mark.parametrize("name", NAMES)
def test_pointers(name: str, checkpoint: Path) -> None:
    """`latest` is a hint for people: whatever it says, the newest that verifies is taken."""
    (checkpoint.parent / "latest").write_text(name)
    found = newest_verified(checkpoint.parent, lambda _: None)
    assert found is not None
    assert found.path == checkpoint
