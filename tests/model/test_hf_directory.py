"""Directories that are good, and every way that they can be bad."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Model, LlamaModel

from model import build, load_pretrained, save_pretrained
from model.hf import CheckpointError, from_hf_state, to_hf_state
from model.hf import directory as hf_directory
from tests.model.shapes import (
    FAMILIES,
    LM_HEAD,
    odd_config,
    odd_hf_config,
    scramble,
    their_class,
    token_ids,
)


@pytest.fixture
def saved(tmp_path):
    def save(family="llama", seed=1, head=None, **changes):
        config = odd_config(family, seed).model_copy(update=changes)
        net = scramble(build(config, head or LM_HEAD[family]).eval())
        save_pretrained(net, tmp_path / "m")
        return net, tmp_path / "m"

    return save


def refusal(path, head="causal_lm", **options):
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(path, head, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def rewrite(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def edit(path, **changes):
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | changes))


def assert_same_weights(got, expected):
    state, reference = got.state_dict(), expected.state_dict()
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[name], reference[name]) for name in reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_shards(family, tmp_path):
    net = scramble(build(odd_config(family, 1), LM_HEAD[family]).eval())
    save_pretrained(net, tmp_path / "m", max_shard_bytes=9000)
    names = sorted(p.name for p in (tmp_path / "m").iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    assert len(shards) > 2
    assert f"model-00001-of-{len(shards):05d}.safetensors" == shards[0]
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    size = sum(p.numel() * 4 for p in net.parameters())
    assert index["metadata"]["total_size"] == size
    for shard in shards:
        tensors = load_file(tmp_path / "m" / shard)
        assert set(tensors) == {n for n, f in index["weight_map"].items() if f == shard}
        assert len(tensors) == 1 or sum(t.numel() * 4 for t in tensors.values()) <= 9000
    assert_same_weights(load_pretrained(tmp_path / "m", LM_HEAD[family]), net)
    theirs = their_class(family, LM_HEAD[family]).from_pretrained(tmp_path / "m")
    ids = token_ids(net.config, 1, 5)
    assert torch.allclose(theirs(ids).logits, net(ids).logits, rtol=1e-4, atol=1e-4)


def test_tensors_larger_than_a_shard_get_their_own(tmp_path):
    net = build(odd_config("gpt2", 1))
    save_pretrained(net, tmp_path / "m", max_shard_bytes=1)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == len(net.state_dict())
    assert_same_weights(load_pretrained(tmp_path / "m"), net)


def test_an_index_never_leads_out_of_the_directory(saved):
    _, path = saved()
    (path / "model.safetensors").rename(path.parent / "elsewhere.safetensors")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "got file name '../elsewhere.safetensors'" in refusal(path)


def test_saving_over_another_model_leaves_nothing_of_it(tmp_path):
    save_pretrained(build(odd_config("llama", 1)), tmp_path / "m", max_shard_bytes=9000)
    (tmp_path / "m" / "notes.txt").write_text("mine")
    net = scramble(build(odd_config("gpt2", 2)).eval())
    save_pretrained(net, tmp_path / "m")
    names = sorted(p.name for p in (tmp_path / "m").iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors", "notes.txt"]
    assert_same_weights(load_pretrained(tmp_path / "m"), net)


def test_files_are_readable_by_others(saved):
    _, path = saved()
    umask = os.umask(0)
    os.umask(umask)
    assert (path.stat().st_mode & 0o777) == 0o777 & ~umask
    for file in path.iterdir():
        assert (file.stat().st_mode & 0o777) == 0o666 & ~umask, file.name


def test_tokenizer_is_copied(tmp_path):
    source = tmp_path / "tok"
    source.mkdir()
    (source / "tokenizer_config.json").write_text("{}")
    net = build(odd_config("gpt2", 1))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        save_pretrained(net, tmp_path / "m", tokenizer_dir=source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tok"]
    (source / "tokenizer.json").write_text('{"x": 1}')
    (source / "other.py").write_text("")
    save_pretrained(net, tmp_path / "m", tokenizer_dir=source)
    assert (tmp_path / "m" / "tokenizer.json").read_text() == '{"x": 1}'
    assert (tmp_path / "m" / "tokenizer_config.json").exists()
    assert not (tmp_path / "m" / "other.py").exists()


@pytest.mark.parametrize("stage", ["to_hf_state", "write_shards", "write_json"])
def test_a_failed_save_leaves_nothing(stage, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(hf_directory, stage, fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(build(odd_config("gpt2", 1)), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_gathered_state_is_saved_instead_of_the_nets_own(tmp_path):
    net = scramble(build(odd_config("llama", 1)))
    state = {name: t.detach().clone() for name, t in net.named_parameters()}
    with torch.device("meta"):
        shell = build(net.config)
    save_pretrained(shell, tmp_path / "m", state=state)
    assert_same_weights(load_pretrained(tmp_path / "m"), net)


def test_a_model_with_other_tensors_is_not_saved(tmp_path):
    net = build(odd_config("gpt2", 1))
    net.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"unexpected extra\.weight, unexpected extra\.bias"):
        save_pretrained(net, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["sequence", "token"])
def test_a_new_head_is_drawn_and_named(family, head, saved):
    net, path = saved(family)
    torch.manual_seed(0)
    classifier = load_pretrained(path, head=head, num_labels=5)
    heads = {name for name in classifier.state_dict() if not name.startswith("trunk.")}
    # ModernBERT's transform is the masked model's own.
    known = {name for name in heads if family == "modernbert" and name.startswith("transform.")}
    assert set(classifier.newly_initialised) == heads - known
    assert "score.weight" in heads - known
    assert classifier.config.num_labels == 5
    assert classifier.score.weight.shape == (5, net.config.d_model)
    assert 0 < float(classifier.score.weight.detach().std()) < 0.1
    for name, parameter in net.trunk.named_parameters():
        assert torch.equal(classifier.trunk.get_parameter(name), parameter)
    for name in known:
        assert torch.equal(classifier.get_parameter(name), net.get_parameter(name))


def test_a_head_for_other_classes_is_replaced_when_asked(saved):
    _, path = saved(head="sequence", num_labels=3)
    assert load_pretrained(path, head="sequence").newly_initialised == []
    assert load_pretrained(path, head="sequence", num_labels=3).newly_initialised == []
    other = load_pretrained(path, head="sequence", num_labels=4)
    assert other.newly_initialised == ["score.weight"]
    edit(path, id2label={"0": "a", "1": "b"})
    assert "score.weight has shape [3, " in refusal(path, head="sequence")


def test_a_missing_output_matrix_is_never_drawn(saved):
    _, path = saved(tie_embeddings=False, head="sequence")
    assert "missing lm_head.weight" in refusal(path)


def test_texts_end_as_generation_config_says(saved):
    """Qwen3's config.json names one of the two tokens that end its texts."""
    net, path = saved("qwen3", eos_token_id=5)
    file = path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [5, 7]}))
    again = load_pretrained(path)
    assert again.config.eos_token_ids == (5, 7)
    save_pretrained(again, path.parent / "again")
    assert load_pretrained(path.parent / "again").config.eos_token_ids == (5, 7)
    assert load_pretrained(path, eos_token_id=3).config.eos_token_ids == (3,)
    assert load_pretrained(path, "sequence").config.eos_token_id == 5
    file.write_text(json.dumps({"eos_token_id": [5]}))
    assert load_pretrained(path).config == net.config
    file.write_text(json.dumps({"eos_token_id": ["end"]}))
    assert "eos_token_id: got ['end'], expected numbers" in refusal(path)
    file.unlink()
    assert load_pretrained(path).config == net.config


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_names_without_prefix_and_stored_constants(family, tmp_path):
    """A trunk saved alone by transformers, as the oldest GPT-2 files are."""
    config = odd_hf_config(family, 2)
    config.tie_word_embeddings = True
    trunk = scramble({"gpt2": GPT2Model, "llama": LlamaModel}[family](config))
    trunk.save_pretrained(tmp_path / "m")

    def add_constants(tensors):
        if family == "gpt2":
            tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
            tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        else:
            tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    rewrite(tmp_path / "m", add_constants)
    net = load_pretrained(tmp_path / "m")
    assert net.newly_initialised == []
    ids = token_ids(net.config, 1, 6)
    hidden = trunk.eval()(ids).last_hidden_state
    assert torch.allclose(net.trunk(ids), hidden, rtol=1e-4, atol=1e-4)


def test_a_stored_copy_of_a_tied_matrix(saved):
    net, path = saved(tie_embeddings=True)
    embedding = net.trunk.token_embedding.weight.detach().clone()
    rewrite(path, lambda t: t.update({"lm_head.weight": embedding}))
    assert_same_weights(load_pretrained(path), net)
    rewrite(path, lambda t: t.update({"lm_head.weight": embedding + 1}))
    assert "tie_word_embeddings: got true, but lm_head.weight differs" in refusal(path)


def test_missing_extra_and_misshapen_tensors_are_listed(saved):
    _, path = saved()

    def damage(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(3)
        name = "model.layers.0.mlp.gate_proj.weight"
        tensors[name] = tensors[name][:-1].clone()

    rewrite(path, damage)
    line = refusal(path)
    assert "missing model.norm.weight" in line
    assert "unexpected model.layers.0.self_attn.q_norm.weight" in line
    assert "model.layers.0.mlp.gate_proj.weight has shape [" in line
    assert "more)" not in line


def test_a_long_list_is_cut(saved):
    _, path = saved("gpt2")
    edit(path, n_layer=50)
    line = refusal(path)
    assert line.count("missing ") == 8
    assert "more)" in line


def test_weights_that_do_not_fit_are_never_read(saved, monkeypatch):
    _, path = saved()
    edit(path, vocab_size=7)

    def fail(*_, **__):
        raise AssertionError("read")

    monkeypatch.setattr(hf_directory.TensorFiles, "__getitem__", fail)
    assert "embed_tokens" in refusal(path)


def test_only_pickles(saved):
    _, path = saved()
    (path / "model.safetensors").unlink()
    assert "no weights; expected model.safetensors" in refusal(path)
    torch.save({}, path / "pytorch_model.bin")
    line = refusal(path)
    assert "pytorch_model.bin" in line
    assert "can run code" in line
    assert f"python -m model import {path} NEW_DIR --from-pickle" in line


def test_no_directory_and_no_config(tmp_path):
    assert "no such directory" in refusal(tmp_path / "gpt2")
    assert "config.json: no such file" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{" * 100_000, "\x00", "[" * 10**6])
def test_broken_json(text, saved):
    _, path = saved()
    (path / "config.json").write_text(text)
    assert "config.json" in refusal(path)


def test_huge_json(saved):
    _, path = saved()
    with (path / "config.json").open("wb") as file:
        file.truncate(17 * 2**20)
    assert "expected at most" in refusal(path)


@pytest.mark.parametrize(
    "name", ["../m2/model.safetensors", "/etc/passwd", "x.bin", "gone.safetensors"]
)
def test_index_with_a_bad_file_name(name, saved):
    _, path = saved()
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert name in refusal(path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(keep, saved):
    _, path = saved()
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:keep])
    assert "not readable as safetensors" in refusal(path)


def test_quantised_weights(saved):
    _, path = saved()
    rewrite(path, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.int8)}))
    assert "model.norm.weight has type I8" in refusal(path)


def test_code_in_the_directory_is_refused(saved):
    _, path = saved()
    edit(path, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (path / "evil.py").write_text("raise SystemExit(7)")
    assert "auto_map" in refusal(path)


def test_loaded_models_are_in_evaluation_mode_and_trainable(saved):
    net, path = saved(dropout=0.1)
    again = load_pretrained(path)
    assert not again.training
    assert again.config == net.config
    assert all(p.requires_grad for p in again.parameters())
    assert load_pretrained(path, dropout=0.0).config.dropout == 0.0


def test_state_functions_refuse_what_does_not_fit():
    net = build(odd_config("llama", 1))
    state = net.state_dict()
    short = {name: t for name, t in state.items() if "final_norm" not in name}
    with pytest.raises(CheckpointError, match=r"missing trunk\.final_norm\.weight"):
        to_hf_state(short, net.config)
    theirs = to_hf_state(state, net.config)
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=f"{name} has shape"):
        from_hf_state({**theirs, name: theirs[name].t()}, net.config)
    with pytest.raises(CheckpointError, match=r"both .* are present"):
        from_hf_state({**theirs, "norm.weight": theirs["model.norm.weight"]}, net.config)
    with pytest.raises(CheckpointError, match=r"missing score\.weight"):
        from_hf_state(theirs, net.config, "sequence")
