"""pytorch_model.bin: read when asked, never obeyed."""

import json
import os

import pytest
import torch

from model.hf.convert import import_model
from tests.model.directories import assert_same_tensors, refusal, saved, stored


class Evil:
    """What a pickle can say: call this when you are opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(path, *, zipped=True, **more):
    """A directory as released before safetensors."""
    saved(path, "gpt2")
    tensors = {**stored(path), **more}
    (path / "model.safetensors").unlink()
    torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return {name: t for name, t in tensors.items() if isinstance(t, torch.Tensor)}


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_read_when_asked(zipped, tmp_path):
    tensors = pickled(tmp_path / "a", zipped=zipped)
    line = refusal(import_model, tmp_path / "a", tmp_path / "b")
    assert f"python -m model import {tmp_path / 'a'} NEW_DIR --from-pickle" in line
    import_model(tmp_path / "a", tmp_path / "b", from_pickle=True)
    assert_same_tensors(stored(tmp_path / "b"), tensors)
    assert "has model.safetensors, which is safer" in refusal(
        import_model, tmp_path / "b", tmp_path / "c", from_pickle=True
    )


def test_pickles_of_transformers_in_shards(tmp_path):
    tensors = pickled(tmp_path / "a")
    names = sorted(tensors)
    parts = {
        "pytorch_model-00001-of-00002.bin": names[::2],
        "pytorch_model-00002-of-00002.bin": names[1::2],
    }
    (tmp_path / "a" / "pytorch_model.bin").unlink()
    for file, held in parts.items():
        torch.save({n: torch.nn.Parameter(tensors[n]) for n in held}, tmp_path / "a" / file)
    index = tmp_path / "a" / "pytorch_model.bin.index.json"
    weight_map = {name: file for file, held in parts.items() for name in held}
    index.write_text(json.dumps({"weight_map": weight_map}))
    import_model(tmp_path / "a", tmp_path / "b", from_pickle=True)
    assert_same_tensors(stored(tmp_path / "b"), tensors)
    index.write_text(json.dumps({"weight_map": {"x": "../pytorch_model.bin"}}))
    assert "got file name '../pytorch_model.bin'" in refusal(
        import_model, tmp_path / "a", tmp_path / "c", from_pickle=True
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_calls_is_not_obeyed(zipped, tmp_path):
    pickled(tmp_path / "a", zipped=zipped, evil=Evil(tmp_path / "was_here"))
    line = refusal(import_model, tmp_path / "a", tmp_path / "b", from_pickle=True)
    assert "pytorch_model.bin: refused, not plainly tensors" in line
    assert "weights_only" not in line  # no advice to run it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    torch.load(tmp_path / "a" / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "was_here").is_dir()  # the pickle was a real one


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list"),
        ({"state": {"x": torch.ones(1)}}, "'state' is a dict"),
        ({"x": 3}, "'x' is a int"),
        ({3: torch.ones(1)}, "expected plain dense tensors by name"),
        ({"x": torch.ones(2).to_sparse()}, "'x' is a torch.sparse_coo tensor"),
        ({"x": torch.ones(2, dtype=torch.int8)}, "x has type int8"),
        ({"x": torch.ones(2)}, "missing transformer.wte.weight"),
    ],
)
def test_pickles_of_something_else(content, words, tmp_path):
    pickled(tmp_path / "a")
    torch.save(content, tmp_path / "a" / "pytorch_model.bin")
    assert words in refusal(import_model, tmp_path / "a", tmp_path / "b", from_pickle=True)


@pytest.mark.parametrize("keep", [0, 10, 1000, -10, -400])
@pytest.mark.parametrize("zipped", [True, False])
def test_broken_pickles(keep, zipped, tmp_path):
    pickled(tmp_path / "a", zipped=zipped)
    path = tmp_path / "a" / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    assert "refused, not plainly" in refusal(
        import_model, tmp_path / "a", tmp_path / "b", from_pickle=True
    )
    path.unlink()
    assert "no pickled weights" in refusal(
        import_model, tmp_path / "a", tmp_path / "b", from_pickle=True
    )
