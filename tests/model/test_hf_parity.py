"""The same numbers as transformers: logits, loss, gradients, tokens, both ways."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from model import build, load_pretrained, save_pretrained
from model.generate import generate
from model.hf import from_hf_state, to_hf_state
from tests.model.shapes import (
    odd_config,
    odd_hf_config,
    relative_error,
    scramble,
    token_ids,
)

LIMIT = 1e-5
CASES = [(family, seed) for family in ("gpt2", "llama") for seed in range(20)]


def gradients_in_their_layout(net):
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return to_hf_state(gradients, net.config, net.head)


def assert_same(net, theirs, ids):
    labels = ids.clone()
    labels[:, :2] = -100
    ours = net(ids, labels=labels)
    reference = theirs(ids, labels=labels)
    assert relative_error(ours.logits, reference.logits) <= LIMIT
    assert relative_error(ours.loss, reference.loss) <= LIMIT
    ours.loss.backward()
    reference.loss.backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    got = gradients_in_their_layout(net)
    assert got.keys() == expected.keys()
    whole = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        # Relative to the tensor, but key biases have a gradient of zero plus rounding.
        scale = max(float(gradient.abs().max()), 1e-2 * whole)
        assert float((got[name] - gradient).abs().max()) <= LIMIT * scale, name


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_ours_opens_in_transformers(family, seed, tmp_path):
    net = scramble(build(odd_config(family, seed)).eval())
    save_pretrained(net, tmp_path / "m")
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()), info
    assert type(theirs).__name__ == {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[family]
    assert_same(net, theirs, token_ids(net.config, 2, 13))


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_theirs_opens_here(family, seed, tmp_path):
    theirs = scramble(AutoModelForCausalLM.from_config(odd_hf_config(family, seed)).eval())
    theirs.save_pretrained(tmp_path / "m")
    net = load_pretrained(tmp_path / "m")
    assert (
        net.config.model_dump() | {"dropout": 0.0, "bos_token_id": None}
        == odd_config(family, seed).model_copy(update={"eos_token_id": 1}).model_dump()
    )
    assert net.newly_initialised == []
    assert_same(net, theirs, token_ids(net.config, 2, 13))


@pytest.mark.parametrize(("family", "seed"), CASES[::4])
def test_export_of_import_is_identical(family, seed, tmp_path):
    theirs = scramble(AutoModelForCausalLM.from_config(odd_hf_config(family, seed)))
    theirs.save_pretrained(tmp_path / "theirs")
    save_pretrained(load_pretrained(tmp_path / "theirs"), tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    expected = theirs.state_dict()
    assert again.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize(("family", "seed"), CASES[::4])
def test_state_maps_there_and_back(family, seed):
    for head in ("causal_lm", "sequence"):
        net = scramble(build(odd_config(family, seed), head))
        state = net.state_dict()
        back = from_hf_state(to_hf_state(state, net.config, head), net.config, head)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def padded(config, sides):
    """Two texts of 6 and 11 tokens with pads (0) on the asked side; ids and mask (2, 11)."""
    ids = token_ids(config, 2, 11)
    mask = torch.ones_like(ids)
    where = slice(6, 11) if sides == "right" else slice(0, 5)
    ids[0, where] = 0
    mask[0, where] = 0
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "seed"), CASES[::5])
def test_sequence_head_equals_transformers(family, seed, side, tmp_path):
    config = odd_config(family, seed).model_copy(
        update={"pad_token_id": 0, "num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}}
    )
    net = scramble(build(config, "sequence").eval())
    save_pretrained(net, tmp_path / "m")
    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(info.values()), info
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert theirs.config.label2id == {"a": 0, "b": 1, "c": 2}
    ids, mask = padded(config, side)
    labels = torch.tensor([2, 0])
    ours, expected = net(ids, mask, labels=labels), theirs(ids, attention_mask=mask, labels=labels)
    assert ours.logits.shape == (2, 3)
    assert relative_error(ours.logits, expected.logits) <= LIMIT
    assert relative_error(ours.loss, expected.loss) <= LIMIT
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_pretrained(tmp_path / "theirs", head="sequence")
    assert again.config == config
    assert torch.equal(again(ids, mask).logits, ours.logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padded_logits_equal_transformers(family, side, tmp_path):
    net = scramble(build(odd_config(family, 1)).eval())
    save_pretrained(net, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ids, mask = padded(net.config, side)
    ours, expected = net(ids, mask).logits, theirs(ids, attention_mask=mask).logits
    assert relative_error(ours[mask == 1], expected[mask == 1]) <= LIMIT


@pytest.mark.parametrize(("family", "seed"), CASES[::3])
def test_greedy_generation_equals_transformers(family, seed, tmp_path):
    config = odd_config(family, seed).model_copy(update={"eos_token_id": 7, "pad_token_id": 0})
    net = scramble(build(config).eval())
    save_pretrained(net, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    for ids, mask in ((token_ids(config, 2, 5), None), padded(config, "left")):
        ours = generate(net, ids, 20, attention_mask=mask)
        whole = torch.ones_like(ids) if mask is None else mask
        expected = theirs.generate(
            ids, attention_mask=whole, max_new_tokens=20, do_sample=False, num_beams=1
        )
        assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bf16_directory(family, tmp_path):
    net = scramble(build(odd_config(family, 2)).eval())
    save_pretrained(net, tmp_path / "m", dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert theirs.dtype == torch.bfloat16
    again = load_pretrained(tmp_path / "m")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    wide = load_pretrained(tmp_path / "m", dtype=torch.float32)
    for name, parameter in wide.named_parameters():
        assert torch.equal(parameter, net.get_parameter(name).bfloat16().float()), name
