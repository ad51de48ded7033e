"""The same numbers as transformers: logits, loss, gradients, tokens, both ways."""

import json

import pytest
import torch

from model import build, load_pretrained, save_pretrained
from model.generate import generate
from model.hf import from_hf_state, to_hf_state
from tests.model.shapes import (
    CAUSAL,
    FAMILIES,
    LM_HEAD,
    odd_config,
    odd_hf_config,
    relative_error,
    scramble,
    their_class,
    token_ids,
)

LIMIT = 1e-5
CASES = [(family, seed) for family in FAMILIES for seed in range(20)]
HEADS = [
    (family, head)
    for family in FAMILIES
    for head in ("sequence", "token", "span", *(("pretraining",) if family == "bert" else ()))
]
SIDES = [
    (family, head, side)
    for family, head in HEADS
    for side in ("left", "right")
    # Their pooling takes the first column, whatever it holds.
    if side == "right" or family in CAUSAL or head in ("token", "span")
]
LABELS = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}}


def gradients_in_their_layout(net):
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    for name, p in net.named_parameters():
        gradients.setdefault(name, torch.zeros_like(p))
    return to_hf_state(gradients, net.config, net.head)


def assert_same_gradients(net, theirs):
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    got = gradients_in_their_layout(net)
    whole = max(float(g.abs().max()) for g in expected.values())
    assert expected.keys() <= got.keys()
    for name in got:
        gradient = expected.get(name, torch.zeros(()))
        # Relative to the tensor, but key biases have a gradient of zero plus rounding.
        scale = max(float(gradient.abs().max()), 3e-2 * whole)
        assert float((got[name] - gradient).abs().max()) <= LIMIT * scale, name


def assert_same(net, theirs, ids):
    labels = ids.clone()
    labels[:, :2] = -100
    ours = net(ids, labels=labels)
    reference = theirs(ids, labels=labels)
    assert relative_error(ours.logits, reference.logits) <= LIMIT
    assert relative_error(ours.loss, reference.loss) <= LIMIT
    ours.loss.backward()
    reference.loss.backward()
    assert_same_gradients(net, theirs)


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_ours_opens_in_transformers(family, seed, tmp_path):
    net = scramble(build(odd_config(family, seed), LM_HEAD[family]).eval())
    save_pretrained(net, tmp_path / "m")
    cls = their_class(family, LM_HEAD[family])
    theirs, info = cls.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.config.architectures == [cls.__name__]
    assert_same(net, theirs, token_ids(net.config, 2, 13))


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_theirs_opens_here(family, seed, tmp_path):
    cls = their_class(family, LM_HEAD[family])
    theirs = scramble(cls(odd_hf_config(family, seed)).eval())
    theirs.save_pretrained(tmp_path / "m")
    net = load_pretrained(tmp_path / "m", LM_HEAD[family])
    differing = {"dropout": 0.0, "bos_token_id": None, "eos_token_id": 1}
    got, want = (c.model_dump() | differing for c in (net.config, odd_config(family, seed)))
    if not want["sliding_layers"]:  # then the window is without effect, and its size not stored
        want["sliding_window"] = got["sliding_window"]
    assert got == want
    assert net.newly_initialised == []
    assert_same(net, theirs, token_ids(net.config, 2, 13))


@pytest.mark.parametrize(("family", "seed"), CASES[::4])
def test_export_of_import_is_identical(family, seed, tmp_path):
    cls = their_class(family, LM_HEAD[family])
    theirs = scramble(cls(odd_hf_config(family, seed)))
    theirs.save_pretrained(tmp_path / "theirs")
    save_pretrained(load_pretrained(tmp_path / "theirs", LM_HEAD[family]), tmp_path / "ours")
    again = cls.from_pretrained(tmp_path / "ours").state_dict()
    expected = theirs.state_dict()
    assert again.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize(("family", "seed"), CASES[::4])
def test_state_maps_there_and_back(family, seed):
    config = odd_config(family, seed)
    for head in config.heads:
        net = scramble(build(config, head))
        state = net.state_dict()
        back = from_hf_state(to_hf_state(state, net.config, head), net.config, head)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def padded(config, side):
    """Two texts of 6 and 11 tokens with padding on one side; ids and mask (2, 11)."""
    ids = token_ids(config, 2, 11)
    mask = torch.ones_like(ids)
    where = slice(6, 11) if side == "right" else slice(0, 5)
    ids[0, where] = 0 if config.pad_token_id is None else config.pad_token_id
    mask[0, where] = 0
    return ids, mask


def head_inputs(config, head, side):
    ids, mask = padded(config, side)
    labels = {
        "sequence": torch.tensor([2, 0]),
        "token": torch.where(mask == 1, torch.randint(0, 3, ids.shape), -100),
        "span": torch.tensor([[6, 8], [2, 10]] if side == "left" else [[1, 3], [2, 10]]),
        "pretraining": torch.where(mask == 1, ids, -100),
    }[head]
    return ids, mask, labels


def their_output(theirs, head, ids, mask, labels, **more):
    if head == "span":
        out = theirs(
            ids, attention_mask=mask, start_positions=labels[:, 0], end_positions=labels[:, 1]
        )
        return torch.stack((out.start_logits, out.end_logits), -1), out.loss
    if head == "pretraining":
        out = theirs(
            ids,
            attention_mask=mask,
            labels=labels,
            next_sentence_label=torch.tensor([1, 0]),
            **more,
        )
        return out.prediction_logits, out.loss
    out = theirs(ids, attention_mask=mask, labels=labels)
    return out.logits, out.loss


@pytest.mark.parametrize("seed", range(0, 20, 4))
@pytest.mark.parametrize(("family", "head", "side"), SIDES)
def test_task_heads_equal_transformers(family, head, side, seed, tmp_path):
    config = odd_config(family, seed)
    pad = config.pad_token_id or 0
    config = config.model_copy(update={"pad_token_id": pad, **LABELS})
    net = scramble(build(config, head).eval())
    save_pretrained(net, tmp_path / "m")
    cls = their_class(family, head)
    theirs, info = cls.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()), info
    theirs.eval()
    if head in ("sequence", "token"):
        assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
        assert theirs.config.label2id == {"a": 0, "b": 1, "c": 2}
    ids, mask, labels = head_inputs(config, head, side)
    more, pairs = {}, {}
    if head == "pretraining":
        more = {"token_type_ids": torch.randint(0, config.type_vocab_size, ids.shape)}
        pairs = {"pair_labels": torch.tensor([1, 0])}
    ours = net(ids, mask, labels=labels, **more, **pairs)
    logits, loss = their_output(theirs, head, ids, mask, labels, **more)
    is_text = torch.ones(len(ids), dtype=torch.bool) if head == "sequence" else mask == 1
    assert relative_error(ours.logits[is_text], logits[is_text]) <= LIMIT
    if head != "span":  # whose loss lets padding compete with the text in transformers
        assert relative_error(ours.loss, loss) <= LIMIT
        ours.loss.backward()
        loss.backward()
        assert_same_gradients(net, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_pretrained(tmp_path / "theirs", head=head)
    assert again.newly_initialised == []
    assert torch.equal(again(ids, mask, **more).logits[is_text], ours.logits[is_text])


@pytest.mark.parametrize("seed", range(0, 20, 4))
@pytest.mark.parametrize("family", FAMILIES)
def test_span_loss_and_gradients_equal_transformers(family, seed, tmp_path):
    net = scramble(build(odd_config(family, seed), "span").eval())
    save_pretrained(net, tmp_path / "m")
    theirs = their_class(family, "span").from_pretrained(tmp_path / "m").eval()
    ids, places = token_ids(net.config, 2, 11), torch.tensor([[1, 3], [2, 10]])
    _, loss = their_output(theirs, "span", ids, torch.ones_like(ids), places)
    ours = net(ids, labels=places).loss
    assert relative_error(ours, loss) <= LIMIT
    ours.backward()
    loss.backward()
    assert_same_gradients(net, theirs)


def test_padding_is_no_answer():
    net = build(odd_config("bert", 1), "span").eval()
    ids, mask = padded(net.config, "right")
    alone = net(ids[:1, :6], labels=torch.tensor([[1, 4]])).loss
    with_padding = net(ids[:1], mask[:1], labels=torch.tensor([[1, 4]])).loss
    assert relative_error(with_padding, alone) <= LIMIT


@pytest.mark.parametrize("family", FAMILIES)
def test_a_task_head_is_new_on_a_pretrained_trunk(family, tmp_path):
    net = scramble(build(odd_config(family, 2), LM_HEAD[family]).eval())
    save_pretrained(net, tmp_path / "m")
    for head in ("sequence", "token", "span"):
        tuned = load_pretrained(tmp_path / "m", head=head)
        assert any(name.startswith("score") for name in tuned.newly_initialised)
        assert not any(name.startswith("trunk") for name in tuned.newly_initialised)
        if family == "modernbert":  # its classes share this layer with the masked-LM head
            assert torch.equal(tuned.transform.dense.weight, net.transform.dense.weight)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(0, 20, 4))
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_logits_equal_transformers(family, seed, side, tmp_path):
    net = scramble(build(odd_config(family, seed), LM_HEAD[family]).eval())
    save_pretrained(net, tmp_path / "m")
    theirs = their_class(family, LM_HEAD[family]).from_pretrained(tmp_path / "m")
    ids, mask = padded(net.config, side)
    expected = theirs(ids, attention_mask=mask).logits
    for unpads in (True, False):
        net.trunk.unpads = unpads
        ours = net(ids, mask).logits
        assert relative_error(ours[mask == 1], expected[mask == 1]) <= LIMIT


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_segments_equal_transformers(family, tmp_path):
    config = odd_config(family, 3).model_copy(update={"type_vocab_size": 2})
    net = scramble(build(config, "masked_lm").eval())
    save_pretrained(net, tmp_path / "m")
    theirs = their_class(family, "masked_lm").from_pretrained(tmp_path / "m")
    ids = token_ids(net.config, 2, 9)
    types = torch.randint(0, net.config.type_vocab_size, ids.shape)
    expected = theirs(ids, token_type_ids=types).logits
    assert relative_error(net(ids, token_type_ids=types).logits, expected) <= LIMIT
    assert relative_error(net(ids).logits, expected) > 1e-3


@pytest.mark.parametrize(("family", "seed"), [c for c in CASES if c[0] in CAUSAL][::3])
def test_greedy_generation_equals_transformers(family, seed, tmp_path):
    config = odd_config(family, seed).model_copy(update={"eos_token_id": 7, "pad_token_id": 0})
    net = scramble(build(config).eval())
    save_pretrained(net, tmp_path / "m")
    theirs = their_class(family, "causal_lm").from_pretrained(tmp_path / "m")
    for ids, mask in ((token_ids(config, 2, 5), None), padded(config, "left")):
        ours = generate(net, ids, 20, attention_mask=mask)
        whole = torch.ones_like(ids) if mask is None else mask
        expected = theirs.generate(
            ids, attention_mask=whole, max_new_tokens=20, do_sample=False, num_beams=1
        )
        assert ours.tolist() == expected.tolist()


def test_generation_ends_where_transformers_ends(tmp_path):
    """At any of the tokens of generation_config.json, of which config.json names one."""
    config = odd_config("qwen3", 3).model_copy(update={"eos_token_id": None, "pad_token_id": 0})
    net = scramble(build(config).eval())
    ids = token_ids(config, 1, 5)
    ends = generate(net, ids, 20)[0, [11, 20]].tolist()
    net.config = config.model_copy(update={"eos_token_id": ends[1]})
    save_pretrained(net, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    theirs = their_class("qwen3", "causal_lm").from_pretrained(tmp_path / "m")
    expected = theirs.generate(ids, max_new_tokens=20, do_sample=False)
    assert generate(load_pretrained(tmp_path / "m"), ids, 20).tolist() == expected.tolist()
    assert expected.shape[1] < generate(net, ids, 20).shape[1]


def test_an_empty_text_has_no_effect_on_the_others():
    """Averaged over no token at all, it would be NaN, and so would every gradient."""
    config = odd_config("modernbert", 0).model_copy(update={"pooling": "mean"})
    net = scramble(build(config, "sequence").eval())
    ids = token_ids(config, 2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
    for unpads in (True, False):
        net.trunk.unpads = unpads
        logits = net(ids, mask).logits
        assert logits.isfinite().all()
        assert relative_error(logits[:1], net(ids[:1], mask[:1]).logits) <= LIMIT


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_directory(family, tmp_path):
    head = LM_HEAD[family]
    net = scramble(build(odd_config(family, 2), head).eval())
    save_pretrained(net, tmp_path / "m", dtype=torch.bfloat16)
    theirs = their_class(family, head).from_pretrained(tmp_path / "m")
    assert theirs.dtype == torch.bfloat16
    again = load_pretrained(tmp_path / "m", head)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    wide = load_pretrained(tmp_path / "m", head, dtype=torch.float32)
    for name, parameter in wide.named_parameters():
        assert torch.equal(parameter, net.get_parameter(name).bfloat16().float()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_vocabulary_is_never_seen_outside(family, tmp_path):
    config = odd_config(family, 5)
    wide = config.model_copy(update={"vocab_multiple": 64})
    head = LM_HEAD[family]
    net = scramble(build(wide, head).eval())
    rows = net.trunk.token_embedding.weight.shape[0]
    assert rows % 64 == 0
    assert rows > config.vocab_size
    save_pretrained(net, tmp_path / "m")
    plain = load_pretrained(tmp_path / "m", head)
    assert plain.config == config
    ids = token_ids(config, 2, 9)
    ours = net(ids, labels=ids)
    assert ours.logits.shape[-1] == config.vocab_size
    assert relative_error(ours.logits, plain(ids).logits) <= LIMIT
    target = net.train()(ids, targets=ids).loss
    target.backward()
    assert relative_error(target, plain.train()(ids, targets=ids).loss) <= LIMIT
    grad = net.trunk.token_embedding.weight.grad
    assert not grad[config.vocab_size :].any()
    again = load_pretrained(tmp_path / "m", head, vocab_multiple=64)
    assert not again.trunk.token_embedding.weight[config.vocab_size :].any()
