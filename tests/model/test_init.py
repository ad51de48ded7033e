import math

import pytest
import torch

from model import build, preset
from model.init import initialise, parameter_groups

NAMES = ["gpt2-tiny", "llama-tiny", "qwen3-tiny", "bert-tiny", "modernbert-tiny"]


@pytest.mark.parametrize("name", NAMES)
def test_statistics(name):
    config = preset(name, init_std=0.03)
    scaled = 0.03 / math.sqrt(2 * config.n_layers)
    residual = scaled if config.family in ("gpt2", "modernbert") else 0.03
    # A normal cut at two deviations has 0.8796 of the deviation.
    is_cut = config.family in ("bert", "modernbert")
    for key, parameter in build(config).named_parameters():
        if parameter.dim() >= 2:
            writes_residual = key.endswith(("attention.output.weight", "mlp.down.weight"))
            is_small = writes_residual or (config.family == "modernbert" and "transform" in key)
            std = residual if is_small else 0.03
            expected = std * (0.8796 if is_cut else 1)
            # A sample's deviation has a relative error of 1/√(2n).
            error = 6 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(expected, rel=error), key
            assert abs(parameter.mean().item()) < 6 * expected / math.sqrt(parameter.numel())
            assert (parameter.abs().max().item() <= 2 * std + 1e-6) == is_cut, key
        elif "bias" in key:
            assert not parameter.any(), key
        else:
            assert (parameter == 1).all(), key


def test_same_seed_same_weights():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build("llama-tiny").state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(
        states[0]["trunk.token_embedding.weight"], states[2]["trunk.token_embedding.weight"]
    )


@pytest.mark.parametrize("name", NAMES)
def test_meta_construction_then_initialise_equals_build(name):
    torch.manual_seed(5)
    built = build(name)
    with torch.device("meta"):
        net = build(name)
    assert all(p.is_meta for p in net.parameters())
    net.to_empty(device="cpu")
    torch.manual_seed(5)
    initialise(net)
    for name, parameter in built.named_parameters():
        assert torch.equal(parameter, net.get_parameter(name)), name
    ids = torch.arange(8)[None]
    assert torch.equal(built.eval()(ids).logits, net.eval()(ids).logits)


@pytest.mark.parametrize("name", NAMES)
def test_first_loss_is_that_of_a_uniform_guess(name):
    net = build(name)
    ids = torch.randint(0, net.config.vocab_size, (4, 64))
    assert net(ids, labels=ids).loss.item() == pytest.approx(
        math.log(net.config.vocab_size), abs=0.1
    )


def test_parameter_groups():
    net = build("gpt2-tiny")
    decay, rest = parameter_groups(net, 0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() >= 2 for p in decay["params"])
    assert all(p.dim() == 1 for p in rest["params"])
    assert any(p is net.trunk.token_embedding.weight for p in decay["params"])
    grouped = {id(p) for group in (decay, rest) for p in group["params"]}
    assert grouped == {id(p) for p in net.parameters()}
    assert len(decay["params"]) + len(rest["params"]) == len(grouped)


@pytest.mark.parametrize("name", NAMES)
def test_muon_takes_the_matrices_of_the_blocks_and_no_others(name):
    net = build(name)
    muon, *others = parameter_groups(net, 0.1, muon=True)
    assert [group["name"] for group in (muon, *others)] == ["muon", "decay", "no_decay"]
    in_blocks = [p for p in net.trunk.blocks.parameters() if p.dim() >= 2]
    assert {id(p) for p in muon["params"]} == {id(p) for p in in_blocks}
    assert [sum(rows) for rows in muon["splits"]] == [p.shape[0] for p in muon["params"]]
    grouped = [id(p) for group in (muon, *others) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())
    block = net.trunk.blocks[0]
    splits = dict(zip(map(id, muon["params"]), muon["splits"], strict=True))
    config = net.config
    queries, keys = (n * config.head_dim for n in (config.n_heads, config.n_kv_heads))
    assert splits[id(block.attention.qkv.weight)] == (queries, keys, keys)
    if config.is_gated:
        assert splits[id(block.mlp.gate_up.weight)] == (config.d_ff, config.d_ff)


def test_frozen_parameters_are_in_no_group():
    net = build("llama-tiny")
    net.trunk.requires_grad_(False)
    assert parameter_groups(net, 0.1) == []


def test_padding_rows_of_the_vocabulary_start_at_zero():
    net = build(preset("llama-tiny", vocab_size=1000, vocab_multiple=64, tie_embeddings=False))
    for table in (net.trunk.token_embedding, net.unembedding):
        assert table.weight.shape[0] == 1024
        assert not table.weight[1000:].any()
        assert table.weight[:1000].any(1).all()
