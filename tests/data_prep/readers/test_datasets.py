"""Folders of Hugging Face datasets, without the network."""

import json

import datasets
import pytest

from data_prep.config import DataPrepConfig
from data_prep.input_config import Input, expand
from data_prep.readers.hub import dataset_files
from data_prep.saved_datasets import saved_files
from data_prep.sources import input_files
from runtime.errors import UserError
from tests.data_prep.readers.reading import read_all, texts
from tests.data_prep.samples import make_texts


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def saved(folder, count=300, shards=3):
    data = datasets.Dataset.from_dict({"text": make_texts(count)})
    data.save_to_disk(str(folder), num_shards=shards)
    return folder


def test_a_saved_dataset_is_read_in_its_order(tmp_path):
    folder = saved(tmp_path / "d")
    (folder / "cache-0123.arrow").write_bytes(b"what a map left behind")
    found = expand(str(folder), "auto")
    assert [path.name for path in found] == [f"data-0000{n}-of-00003.arrow" for n in range(3)]
    assert [text for path in found for text in texts(read_all(path, 1))] == make_texts(300)


def test_splits_are_chosen_and_train_is_the_first_choice(tmp_path):
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    folder = tmp_path / "d"
    datasets.DatasetDict(parts).save_to_disk(str(folder))

    def read(entry):
        config = DataPrepConfig(input=Input(paths=(entry,)), output=str(tmp_path / "out"))
        return [text for _, path in input_files(config, tmp_path) for text in texts(read_all(path))]

    assert read(str(folder)) == ["train"]
    assert read(f"datasets:{folder}") == ["train"]
    assert read(f"datasets:{folder}@test") == ["test"]
    with pytest.raises(UserError, match=r"no split 'dev'; .* train, test"):
        read(f"datasets:{folder}@dev")


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "a/b.arrow", ""])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    folder = saved(tmp_path / "d", 3, 1)
    (tmp_path / "secret.arrow").write_bytes(b"x")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(UserError, match="outside of it"):
        saved_files(folder)


def test_any_folder_that_datasets_opens(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    for split in ("train", "test"):
        lines = (json.dumps({"text": f"{split} {n}"}) for n in range(50))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    (name, path), *others = dataset_files(f"datasets:{folder}@test")
    assert not others
    assert name.startswith(f"datasets:{folder}@test/")
    assert texts(read_all(path)) == [f"test {n}" for n in range(50)]


def test_what_is_no_dataset(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"datasets:.*empty: cannot be opened") as told:
        dataset_files(f"datasets:{tmp_path / 'empty'}")
    assert told.value.status == 2
    with pytest.raises(UserError, match="name one whole split"):
        dataset_files(f"datasets:{tmp_path / 'empty'}@train[:10%]")
