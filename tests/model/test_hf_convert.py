"""Released directories to canonical ones, and checkpoints to released ones."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import save_file

from model import ModelConfig, build, load_pretrained, save_pretrained
from model.hf import convert as hf_convert
from model.hf.convert import export_step, import_model
from model.hf.manifest import newest_step
from model.hf.state import slots
from runtime.checkpoint import verify as verify_checkpoint
from runtime.checkpoint.format import hash_file
from tests.model.directories import assert_same_tensors, refusal, saved, stored
from tests.model.shapes import (
    FAMILIES,
    LM_HEAD,
    odd_config,
    odd_hf_config,
    scramble,
    their_class,
)

CASES = [(family, head) for family in FAMILIES for head in odd_config(family, 1).heads]


def rewrite(path, change):
    tensors = stored(path)
    tensors = change(tensors) or tensors
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def edit(path, **changes):
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | changes))


@pytest.mark.parametrize(("family", "head"), CASES)
def test_import_and_export_keep_every_byte(family, head, tmp_path):
    saved(tmp_path / "a", family, head)
    done = import_model(tmp_path / "a", tmp_path / "b", max_shard_bytes=20_000)
    assert (done.config.family, done.head, done.left_out) == (family, head, ())
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    export_step(tmp_path / "b", tmp_path / "c")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {path.name for path in (tmp_path / "c").iterdir()}
    tensors = stored(tmp_path / "c")
    assert done.tensors == len(tensors)
    assert done.bytes == sum(t.nbytes for t in tensors.values())
    plan = slots(done.config, head)
    expected = {
        n: s for slot in plan for n, s in zip(slot.theirs, slot.their_shapes(), strict=True)
    }
    assert {name: tuple(t.shape) for name, t in tensors.items()} == expected


@pytest.mark.parametrize("causal", [True, False])
def test_models_that_transformers_does_not_know(causal, tmp_path):
    shape = {"n_layers": 2, "n_heads": 2, "d_model": 24, "vocab_size": 50, "max_seq_len": 32}
    config = ModelConfig(family="custom", causal=causal, vocab_multiple=16, **shape)
    for head in config.heads:
        net = scramble(build(config, head))
        save_pretrained(net, tmp_path / head / "a")
        assert import_model(tmp_path / head / "a", tmp_path / head / "b").head == head
        export_step(tmp_path / head / "b", tmp_path / head / "c")
        for name in ("config.json", "model.safetensors"):
            ours = (tmp_path / head / "a" / name).read_bytes()
            assert (tmp_path / head / "c" / name).read_bytes() == ours


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_wrote_it_opens_again(family, tmp_path):
    cls = their_class(family, LM_HEAD[family])
    theirs = scramble(cls(odd_hf_config(family, 2)))
    theirs.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    import_model(tmp_path / "a", tmp_path / "b", dtype=torch.bfloat16)
    again, info = cls.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info.values())
    assert again.dtype == torch.bfloat16
    assert_same_tensors(again.state_dict(), theirs.bfloat16().state_dict())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_without_a_head(family, tied, tmp_path):
    config = odd_hf_config(family, 2)
    config.tie_word_embeddings = tied or family in ("bert", "roberta")
    stem = their_class(family, "sequence").__name__.removesuffix("ForSequenceClassification")
    cls = getattr(transformers, f"{stem}Model")
    theirs = scramble(cls(config))
    theirs.save_pretrained(tmp_path / "a")
    done = import_model(tmp_path / "a", tmp_path / "b")
    # A causal model whose output matrix is its embedding lacks nothing.
    is_whole = family in ("gpt2", "llama", "qwen3") and config.tie_word_embeddings
    assert done.head == (LM_HEAD[family] if is_whole else "trunk")
    again, info = cls.from_pretrained(tmp_path / "b", output_loading_info=True)
    ours_alone = {"pooler.dense.weight", "pooler.dense.bias"}
    assert not info["unexpected_keys"]
    if family == "roberta":  # its pooler has no place in any of our heads
        assert set(info["missing_keys"]) == ours_alone
        assert len(done.left_out) == 2
        ours = again.state_dict()
        assert all(
            torch.equal(ours[n], t) for n, t in theirs.state_dict().items() if n not in ours_alone
        )
    else:
        assert not info["missing_keys"]
        assert_same_tensors(again.state_dict(), theirs.state_dict())
    classifier = load_pretrained(tmp_path / "b", "sequence")
    assert "score.weight" in classifier.newly_initialised
    assert not any(name.startswith("trunk.") for name in classifier.newly_initialised)
    assert_same_again(tmp_path / "b", tmp_path / "c")


def assert_same_again(source, destination):
    import_model(source, destination)
    for name in ("config.json", "model.safetensors"):
        assert (destination / name).read_bytes() == (source / name).read_bytes()


def test_names_of_old_copies_of_tied_matrices_and_constants(tmp_path):
    saved(tmp_path / "a", "bert", "pretraining")
    expected = stored(tmp_path / "a")

    def age(tensors):
        old = {}
        for name, tensor in tensors.items():
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
        embedding = tensors["bert.embeddings.word_embeddings.weight"]
        old["cls.predictions.decoder.weight"] = embedding.clone()
        old["bert.embeddings.position_ids"] = torch.arange(9)[None]
        return old

    rewrite(tmp_path / "a", age)
    done = import_model(tmp_path / "a", tmp_path / "b")
    assert_same_tensors(stored(tmp_path / "b"), expected)
    assert set(done.left_out) == {
        "cls.predictions.decoder.weight",
        "bert.embeddings.position_ids",
    }


def test_a_copy_of_a_tied_matrix_that_differs_is_refused(tmp_path):
    saved(tmp_path / "a", "bert")
    rewrite(
        tmp_path / "a",
        lambda t: (
            t | {"cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"] + 1}
        ),
    )
    line = refusal(import_model, tmp_path / "a", tmp_path / "b")
    assert "tie_word_embeddings: got true, but cls.predictions.decoder.weight differs" in line
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_without_prefix(tmp_path):
    saved(tmp_path / "a", "gpt2")
    expected = stored(tmp_path / "a")
    rewrite(tmp_path / "a", lambda t: {n.removeprefix("transformer."): v for n, v in t.items()})
    import_model(tmp_path / "a", tmp_path / "b")
    assert_same_tensors(stored(tmp_path / "b"), expected)


def test_another_head(tmp_path):
    saved(tmp_path / "a", "bert", "pretraining")
    done = import_model(tmp_path / "a", tmp_path / "b", head="masked_lm")
    assert set(done.left_out) == {
        *(f"bert.pooler.dense.{kind}" for kind in ("weight", "bias")),
        *(f"cls.seq_relationship.{kind}" for kind in ("weight", "bias")),
    }
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    # Nothing is made up: a head that is not there is refused.
    line = refusal(import_model, tmp_path / "a", tmp_path / "c", head="sequence")
    assert "missing classifier.weight" in line
    assert "head: got 'causal_lm', expected one of masked_lm" in refusal(
        import_model, tmp_path / "a", tmp_path / "c", head="causal_lm"
    )


def test_dtypes(tmp_path):
    net = saved(tmp_path / "a")
    import_model(tmp_path / "a", tmp_path / "half", dtype=torch.float16)
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float16"
    halved = load_pretrained(tmp_path / "half")
    for name, parameter in net.half().named_parameters():
        assert torch.equal(halved.get_parameter(name), parameter)
    rewrite(tmp_path / "a", lambda t: {n: v.bfloat16() if "mlp" in n else v for n, v in t.items()})
    import_model(tmp_path / "a", tmp_path / "mixed")
    assert_same_tensors(stored(tmp_path / "mixed"), stored(tmp_path / "a"))
    rewrite(tmp_path / "a", lambda t: {n: 1e6 * v for n, v in t.items()})
    line = refusal(import_model, tmp_path / "a", tmp_path / "b", dtype=torch.float16)
    assert "beyond 65504" in line
    assert not (tmp_path / "b").exists()


def test_the_rest_of_a_directory(tmp_path):
    saved(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text('{"x": 1}')
    (tmp_path / "a" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ x }}")
    (tmp_path / "a" / "evil.py").write_text("")
    generation = {"eos_token_id": [3, 5], "temperature": 0.6, "transformers_version": "4.1"}
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps(generation))
    assert import_model(tmp_path / "a", tmp_path / "b").has_tokenizer
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert (tmp_path / "b" / "tokenizer.json").read_text() == '{"x": 1}'
    kept = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    expected = {"eos_token_id": [3, 5], "temperature": 0.6, "pad_token_id": 0, "use_cache": True}
    assert kept == expected


def test_destinations(tmp_path, monkeypatch):
    saved(tmp_path / "a")
    assert "exists already" in refusal(import_model, tmp_path / "a", tmp_path / "a")
    (tmp_path / "file").touch()
    assert "exists already" in refusal(import_model, tmp_path / "a", tmp_path / "file")
    (tmp_path / "empty").mkdir()
    import_model(tmp_path / "a", tmp_path / "empty")
    import_model(tmp_path / "a", tmp_path / "new" / "and" / "deep")
    assert "no such directory" in refusal(import_model, tmp_path / "none", tmp_path / "b")

    class Usage:
        free = 5

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    assert "0.00 GB free on its disk" in refusal(import_model, tmp_path / "a", tmp_path / "b")


def test_a_failed_import_leaves_nothing(tmp_path, monkeypatch):
    saved(tmp_path / "a")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(hf_convert, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        import_model(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "t5"}, "model_type: got 't5', supported: gpt2"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"hidden_act": "mish"}, "hidden_act: got 'mish'"),
        ({"vocab_size": 7}, "embed_tokens.weight has shape"),
        ({"num_hidden_layers": 9}, "missing model.layers."),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(changes, words, tmp_path):
    saved(tmp_path / "a")
    edit(tmp_path / "a", **changes)
    line = refusal(import_model, tmp_path / "a", tmp_path / "b")
    assert words in line
    assert str(tmp_path / "a") in line
    assert not (tmp_path / "b").exists()


def checkpoint(run, step, *, is_finished=True, seed=1):
    """A step as a training run writes it."""
    path = run / "checkpoints" / f"step_{step:08d}"
    saved(path, seed=seed)
    (path / "training").mkdir()
    (path / "training" / "state.json").write_text("{}")
    if is_finished:
        files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
        entries = {n: {"size": p.stat().st_size, "sha256": hash_file(p)} for n, p in files.items()}
        manifest = {"schema": 1, "step": step, "files": entries}
        (path / "MANIFEST.json").write_text(json.dumps(manifest))
        assert verify_checkpoint(path) == []
    return path


def test_export_takes_the_newest_finished_checkpoint_of_a_run(tmp_path):
    run = tmp_path / "run"
    checkpoint(run, 20)
    newest = checkpoint(run, 100, seed=2)
    checkpoint(run, 3000, is_finished=False, seed=3)
    for number, source in enumerate((run, run / "checkpoints", newest)):
        assert newest_step(source) == newest
        done = export_step(source, tmp_path / f"out{number}", dtype=torch.bfloat16)
        names = {path.name for path in (tmp_path / f"out{number}").iterdir()}
        assert names <= {"config.json", "generation_config.json", "model.safetensors"}
        assert done.config == odd_config("llama", 2)
    line = refusal(newest_step, tmp_path)
    assert "expected a model directory, a checkpoint (step_…) or a run" in line


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_export_refuses_a_damaged_checkpoint(name, tmp_path):
    run = tmp_path / "run"
    checkpoint(run, 20)
    path = checkpoint(run, 100) / name
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    line = refusal(export_step, run, tmp_path / "out")
    assert f"{name} is damaged" in line
    assert "step_00000100" in line
    assert not (tmp_path / "out").exists()


def test_export_does_not_read_the_training_state(tmp_path):
    path = checkpoint(tmp_path / "run", 20)
    (path / "training" / "state.json").write_text("changed")
    export_step(path, tmp_path / "out")
