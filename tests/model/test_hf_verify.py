"""`verify` finds what is wrong with a directory, and nothing in a good one."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from model import ModelConfig, build, save_pretrained
from model.__main__ import main
from model.hf.verify import verify
from runtime.checkpoint.format import hash_file
from tests.model.directories import saved, stored
from tests.model.shapes import FAMILIES, odd_config

SMALL = {"n_layers": 1, "n_heads": 2, "d_model": 8, "vocab_size": 9, "max_seq_len": 8}
CASES = [(family, head) for family in FAMILIES for head in odd_config(family, 1).heads]


def problems(path):
    return [problem for check in verify(path) for problem in check.problems]


def one_problem(path):
    (problem,) = problems(path)
    return problem


def edit(path, **changes):
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | changes))


def rewrite(path, change):
    tensors = stored(path)
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def add_tokenizer(path, size):
    words = {f"w{i}": i for i in range(size)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(path / "tokenizer.json"))


def add_manifest(path):
    files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    entries = {n: {"size": p.stat().st_size, "sha256": hash_file(p)} for n, p in files.items()}
    manifest = {"schema": 1, "step": 7, "files": entries}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(("family", "head"), CASES)
def test_good_directories(family, head, tmp_path, capsys):
    net = saved(tmp_path / "m", family, head, max_shard_bytes=20_000)
    add_tokenizer(tmp_path / "m", net.config.vocab_size)
    (tmp_path / "m" / "training").mkdir()
    (tmp_path / "m" / "training" / "state.json").write_text("{}")
    add_manifest(tmp_path / "m")
    assert problems(tmp_path / "m") == []
    assert main(["verify", str(tmp_path / "m")]) == 0
    out = capsys.readouterr().out
    assert f"{family}, {head}, {net.config.n_layers} layers" in out
    assert f"{sum(p.numel() for p in net.parameters()):,} numbers" in out
    assert f"{net.config.vocab_size} tokens" in out
    assert "every file as written" in out


def test_a_directory_of_weights_alone_is_good(tmp_path, capsys):
    saved(tmp_path / "m")
    assert main(["verify", str(tmp_path / "m")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("config", "tensors", "numbers", "tokenizer", "manifest")
    ]
    assert [line.split()[-1] for line in lines[-2:]] == ["none", "none"]


def test_configs(tmp_path):
    assert one_problem(tmp_path / "m") == "no such directory"
    (tmp_path / "m").mkdir()
    assert "config.json: no such file" in one_problem(tmp_path / "m")
    saved(tmp_path / "m")
    edit(tmp_path / "m", model_type="mamba")
    assert "model_type: got 'mamba'" in one_problem(tmp_path / "m")
    edit(tmp_path / "m", model_type="llama", num_attention_heads="four")
    assert "n_heads" in one_problem(tmp_path / "m")


def test_tensors(tmp_path):
    saved(tmp_path / "m")

    def damage(tensors):
        del tensors["model.norm.weight"]
        tensors["model.extra.weight"] = torch.ones(3)
        name = "model.layers.0.mlp.gate_proj.weight"
        tensors[name] = tensors[name][:-1].clone()

    rewrite(tmp_path / "m", damage)
    line = one_problem(tmp_path / "m")
    assert "missing model.norm.weight" in line
    assert "unexpected model.extra.weight" in line
    assert "model.layers.0.mlp.gate_proj.weight has shape" in line
    data = (tmp_path / "m" / "model.safetensors").read_bytes()
    (tmp_path / "m" / "model.safetensors").write_bytes(data[:-1])
    assert "not readable as safetensors" in one_problem(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    assert "no weights" in one_problem(tmp_path / "m")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_not_finite(value, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("model.hf.verify._PIECE", 64)
    saved(tmp_path / "m", dtype=dtype)

    def damage(tensors):
        tensors["model.norm.weight"][-1] = value
        tensors["model.embed_tokens.weight"][3, :2] = value

    rewrite(tmp_path / "m", damage)
    assert set(problems(tmp_path / "m")) == {
        "model.norm.weight holds 1 numbers that are not finite",
        "model.embed_tokens.weight holds 2 numbers that are not finite",
    }


def test_an_index_that_lies(tmp_path):
    saved(tmp_path / "m", max_shard_bytes=20_000)
    path = tmp_path / "m" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.norm.weight"] = files[0]
    index["weight_map"]["model.ghost.weight"] = files[1]
    del index["weight_map"]["model.embed_tokens.weight"]
    path.write_text(json.dumps(index))
    found = problems(tmp_path / "m")
    assert len(found) == 3
    assert any("model.norm.weight is in" in line and files[-1] in line for line in found)
    assert any("model.ghost.weight is in" in line and "no file" in line for line in found)
    assert any("does not list model.embed_tokens.weight" in line for line in found)


def test_tokenizers(tmp_path):
    config = odd_config("llama", 1).model_copy(
        update={"bos_token_id": 4, "eos_token_id": (5, 30), "pad_token_id": None, "vocab_size": 31}
    )
    save_pretrained(build(config), tmp_path / "m")
    assert problems(tmp_path / "m") == []
    add_tokenizer(tmp_path / "m", 31)
    assert problems(tmp_path / "m") == []
    add_tokenizer(tmp_path / "m", 32)
    assert one_problem(tmp_path / "m") == (
        "tokenizer.json has token 31, expected less than vocab_size=31"
    )
    add_tokenizer(tmp_path / "m", 30)
    assert one_problem(tmp_path / "m") == "eos_token_id: got 30, which tokenizer.json does not have"
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    assert "tokenizer.json: not readable" in one_problem(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    edit(tmp_path / "m", bos_token_id=31)
    assert one_problem(tmp_path / "m") == "bos_token_id: got 31, expected less than vocab_size=31"


def test_manifests(tmp_path):
    path = tmp_path / "m"
    saved(path)
    (path / "training").mkdir()
    (path / "training" / "state.json").write_text("{}")
    add_manifest(path)
    assert problems(path) == []
    (path / "notes.txt").write_text("mine")
    assert one_problem(path) == "notes.txt is not in MANIFEST.json"
    (path / "notes.txt").unlink()
    (path / "training" / "state.json").write_text("[]")
    assert one_problem(path).startswith("training/state.json is damaged")
    (path / "training" / "state.json").write_text("[1]")
    assert one_problem(path) == "training/state.json has 3 bytes, MANIFEST.json says 2"
    (path / "training" / "state.json").unlink()
    assert one_problem(path) == "training/state.json is missing"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "damaged"),
        ("{}", "schema None"),
        ('{"schema": 1}', "damaged"),
        ('{"schema": 1, "files": {"x": 3}}', "damaged"),
        ('{"schema": 2, "files": {}}', "schema 2, this version reads 1"),
        ('{"schema": 1, "files": {"../x": {"size": 1, "sha256": ""}}}', "outside the directory"),
    ],
)
def test_broken_manifests(content, words, tmp_path):
    saved(tmp_path / "m")
    (tmp_path / "m" / "MANIFEST.json").write_text(content)
    assert any(words in problem for problem in problems(tmp_path / "m"))


def test_heads_that_are_none(tmp_path):
    saved(tmp_path / "m")
    edit(tmp_path / "m", architectures=3)
    assert "architectures: got 3, expected a list" in one_problem(tmp_path / "m")
    net = build(ModelConfig(family="custom", **SMALL))
    save_pretrained(net, tmp_path / "c")
    edit(tmp_path / "c", head="masked_lm")  # of a causal model
    assert "head: got 'masked_lm', expected one of causal_lm" in one_problem(tmp_path / "c")


def test_the_command_says_it_in_one_line(tmp_path, capsys):
    saved(tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: t["model.norm.weight"].fill_(float("nan")))
    edit(tmp_path / "m", bos_token_id=10_000)
    assert main(["verify", str(tmp_path / "m")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"error: {tmp_path / 'm'}: ")
    assert "model.norm.weight holds" in captured.err
    assert "bos_token_id: got 10000" in captured.err
