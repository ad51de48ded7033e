"""Our writer of safetensors against the library's, and directories that appear whole."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.hf import CheckpointError
from model.hf.shards import staged, write_safetensors, write_shards
from tests.processes import environment

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def odd_tensors():
    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(7, 3),
        "a.weight": torch.randn(5).bfloat16(),
        "ü.天": torch.randn(2, 3, 5).half(),
        "scalar": torch.randn(()).double(),
        "empty": torch.empty(0, 4),
        "turned": torch.randn(6, 9).t(),
        "part": torch.randn(8, 8)[2:7, 1::3],
        "shared": torch.randn(1).expand(4, 4),
        'quote"and\\slash\n': torch.randn(3),
    }


@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_files_are_those_of_the_library(dtype, tmp_path):
    tensors = odd_tensors()
    write_safetensors(tmp_path / "ours", tensors, dtype)
    whole = {name: t.to(dtype or t.dtype).contiguous().clone() for name, t in tensors.items()}
    save_file(whole, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_large_tensors_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("model.hf.shards._PIECE_BYTES", 100)
    tensors = {
        **odd_tensors(),
        "long": torch.randn(1000),
        "wide": torch.randn(3, 500),
        "turned": torch.randn(50, 30).t(),
    }
    write_safetensors(tmp_path / "m", tensors)
    again = load_file(tmp_path / "m")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], t) for name, t in tensors.items())


def test_shards_hold_what_the_index_says(tmp_path):
    tensors = {f"t{i}": torch.full((10, i), float(i)) for i in range(1, 8)}
    write_shards(tmp_path, tensors, max_shard_bytes=250)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    for file in files:
        held = load_file(tmp_path / file)
        assert set(held) == {name for name, where in index["weight_map"].items() if where == file}
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= 250


@pytest.mark.parametrize("value", [7e4, -1e30])
def test_numbers_beyond_fp16_are_refused(value, tmp_path):
    with pytest.raises(CheckpointError, match="bad: holds numbers beyond 65504"):
        write_safetensors(tmp_path / "m", {"bad": torch.tensor([1.0, value])}, torch.float16)
    infinite = {"t": torch.tensor([float("inf"), float("nan")])}  # as they were before
    write_safetensors(tmp_path / "m", infinite, torch.float16)
    write_safetensors(tmp_path / "m", {"bad": torch.tensor([1.0, value])}, torch.bfloat16)


def test_a_staged_directory_appears_whole_or_not_at_all(tmp_path):
    def fill(path, text, *, fails=False):
        with staged(path) as staging:
            assert not staging.name[0].isalnum()
            (staging / "config.json").write_text(text)
            if fails:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill(tmp_path / "deep" / "m", "1", fails=True)
    assert list((tmp_path / "deep").iterdir()) == []
    fill(tmp_path / "m", "1")
    (tmp_path / "m" / "model-00001-of-00002.safetensors").touch()
    (tmp_path / "m" / "mine.txt").touch()
    with pytest.raises(OSError, match="disk full"):
        fill(tmp_path / "m", "2", fails=True)
    assert (tmp_path / "m" / "config.json").read_text() == "1"
    fill(tmp_path / "m", "3")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "mine.txt"]
    assert (tmp_path / "m" / "config.json").read_text() == "3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "m"]


PEAK = """
import sys, threading, torch
from pathlib import Path
from model import build, preset
from model.hf.convert import import_model

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        seen.append(anonymous())
        done.wait(0.001)

source, destination, kind = sys.argv[1:]
options = {"max_shard_bytes": 64 * 10**6, "from_pickle": kind == "pickle"}
options["dtype"] = None if kind == "same" else torch.bfloat16
import_model(Path(source).parent / "tiny", Path(destination).parent / "warm")
before, seen, done = anonymous(), [], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
import_model(source, destination, **options)
done.set()
thread.join()
assert len(seen) > 20, "not enough looks to know the peak"
print(max(seen) - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """99 million numbers: 395 MB in safetensors files, two of 134 MB, or in one pickle."""
    from model import build, preset, save_pretrained
    from model.hf import to_hf_state

    root = tmp_path_factory.mktemp("large")
    save_pretrained(build(preset("llama-tiny")), root / "tiny")
    net = build(preset("llama-60m", n_layers=10, vocab_size=65536))
    save_pretrained(net, root / "m", max_shard_bytes=64 * 10**6)
    save_pretrained(net, root / "p")
    (root / "p" / "model.safetensors").unlink()
    torch.save(to_hf_state(net.state_dict(), net.config), root / "p" / "pytorch_model.bin")
    yield root
    shutil.rmtree(root)


@pytest.mark.parametrize("kind", ["same", "bf16", "pickle"])
def test_an_import_of_any_size_takes_little_memory(kind, large, tmp_path):
    source = large / ("p" if kind == "pickle" else "m")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(source), str(tmp_path / "out"), kind],
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    shards = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    total = sum(path.stat().st_size for path in source.glob("*.safetensors")) or 395_000_000
    assert len(shards) >= 3
    assert sum(shards) > total / 2.1
    assert int(done.stdout) <= 0.6 * max(shards)
