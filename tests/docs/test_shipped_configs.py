"""Every config that is shipped passes its check, on small data at the places that it names."""

import shutil
from pathlib import Path

import pytest

from data_prep.config import DataPrepConfig, check
from data_prep.pipeline import prepare
from finetune.__main__ import main as finetune
from launch.check.command import main as check_run
from runtime.config import load
from runtime.errors import UserError
from tests.docs.made import write_files, write_models
from tests.processes import ROOT

BUILTIN = "demo.yaml"  # its text is megabytes of the standard library


def shipped(stage: str) -> list[Path]:
    return sorted((ROOT / stage / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and the models that the configs name."""
    found = tmp_path_factory.mktemp("shipped")
    write_files(found)
    write_models(found / "models")
    (found / "runs/demo").mkdir(parents=True)
    for run in ("demo/pretrain", "transfer-english", "transfer-chinese"):
        shutil.copytree(found / "models/gpt2", found / "runs" / run)
    for split in ("train", "dev", "test"):
        shutil.copy(
            found / f"data/reviews.{split}.jsonl", found / f"runs/demo/functions.{split}.jsonl"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        for path in shipped("data_prep"):
            small = ["input.paths=[data/english]"] if path.name == BUILTIN else []
            prepare(load(DataPrepConfig, path, ["workers=1", *small], check))
    return found


def test_there_are_configs_of_every_stage() -> None:
    assert all(shipped(stage) for stage in ("data_prep", "pretrain", "finetune"))


@pytest.mark.parametrize("path", shipped("data_prep"), ids=lambda path: path.name)
def test_data_prep(path: Path, folder: Path) -> None:
    """Prepared by the fixture, from the files that it names."""
    output = load(DataPrepConfig, path).output
    assert (folder / output / "manifest.json").exists()


@pytest.mark.parametrize("path", shipped("pretrain"), ids=lambda path: path.name)
def test_pretrain(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert check_run([str(path)]) == 0
    with pytest.raises(UserError, match=r"run\.name"):
        check_run([str(path), "run.name=x/y"])


@pytest.mark.parametrize("path", shipped("finetune"), ids=lambda path: path.name)
def test_finetune(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert finetune([str(path), "--check"]) == 0
    assert finetune([str(path), "--check", "data.train=absent.jsonl"]) == 2
