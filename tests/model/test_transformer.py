"""Padding, packing, positions and precision of the trunk."""

import pytest
import torch

from model import build, preset
from model.attention import attention_mask_for, document_layout
from model.layers import rotary_table, rotate
from tests.model.shapes import odd_config, relative_error, scramble, token_ids

FAMILIES = ["gpt2", "llama"]


def make(family, seed=1):
    return scramble(build(odd_config(family, seed)).eval())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(family, side):
    net = make(family)
    text, filler = token_ids(net.config, 1, 7), token_ids(net.config, 1, 4)
    alone = net(text).logits
    order = (filler, text) if side == "left" else (text, filler)
    mask = torch.cat([torch.full_like(t, int(t is text)) for t in order], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = net(torch.cat(order, dim=1), mask, positions).logits
    assert relative_error(padded[mask == 1], alone[0]) <= 1e-5
    assert padded.isfinite().all()


def test_rotary_is_relative_so_left_padding_needs_no_positions():
    net = make("llama")
    text = token_ids(net.config, 1, 7)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1]])
    padded = net(torch.cat([text[:, :3], text], 1), mask).logits
    assert relative_error(padded[:, 3:], net(text).logits) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_through_a_fully_padded_row_is_finite(family):
    net = make(family)
    ids = token_ids(net.config, 2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    net(ids, mask, labels=ids).loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(5))
def test_packed_documents_equal_each_alone(family, seed):
    net = make(family, seed)
    lengths = [[5, 1, 10], [3, 7, 6]]  # two rows of 16
    documents = [[token_ids(net.config, 1, n) for n in row] for row in lengths]
    ids = torch.cat([torch.cat(row, 1) for row in documents])
    bounds = torch.tensor([0, 5, 6, 16, 19, 26, 32], dtype=torch.int32)
    packed = net(ids, cu_seqlens=bounds).logits
    alone = torch.stack([torch.cat([net(d).logits[0] for d in row]) for row in documents])
    assert relative_error(packed, alone) <= 1e-5
    # The comparison can fail: without boundaries the documents see one another.
    assert relative_error(net(ids).logits, alone) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_gradients_equal_each_alone(family):
    net = make(family)
    first, second = token_ids(net.config, 1, 4), token_ids(net.config, 1, 8)
    ids = torch.cat([first, second], 1)
    bounds = torch.tensor([0, 4, 12], dtype=torch.int32)
    net(ids, cu_seqlens=bounds, labels=ids).loss.backward()
    packed = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    # 3 + 7 predictions: no document predicts the next one's first token.
    ((3 * net(first, labels=first).loss + 7 * net(second, labels=second).loss) / 10).backward()
    for got, p in zip(packed, net.parameters(), strict=True):
        assert relative_error(got, p.grad) <= 1e-4


def test_packed_positions_restart():
    bounds = torch.tensor([0, 2, 5, 8, 8, 8], dtype=torch.int32)  # repeated ends allowed
    document, position = document_layout(bounds, 2, 4)
    assert position.tolist() == [[0, 1, 0, 1], [0, 0, 1, 2]]  # a row's end ends a document
    assert document.tolist() == [[1, 1, 2, 2], [2, 3, 3, 3]]


def test_explicit_positions_win_over_packed_ones():
    net = make("gpt2")
    ids = token_ids(net.config, 1, 6)
    bounds = torch.tensor([0, 2, 6], dtype=torch.int32)
    straight = net(ids, position_ids=torch.arange(6)[None], cu_seqlens=bounds).logits
    restarted = net(ids, cu_seqlens=bounds).logits
    assert torch.allclose(straight[:, :2], restarted[:, :2], atol=1e-5)
    assert not torch.allclose(straight[:, 2:], restarted[:, 2:], atol=1e-3)


@pytest.mark.parametrize("bounds", [[0, 5], [1, 12], [0, 9, 5, 12], [], [0, 5, 24]])
def test_wrong_boundaries_are_refused(bounds):
    net = make("gpt2")
    with pytest.raises(ValueError, match=r"cu_seqlens: .* expected boundaries .* B·T = 12"):
        net(token_ids(net.config, 1, 12), cu_seqlens=torch.tensor(bounds, dtype=torch.int32))


def test_wrong_shapes_are_refused():
    net = make("gpt2")
    ids = token_ids(net.config, 2, 6)
    with pytest.raises(ValueError, match=r"attention_mask: got shape \(2, 5\), expected \(2, 6\)"):
        net(ids, torch.ones(2, 5))
    long = token_ids(net.config, 1, net.config.max_seq_len + 1)
    with pytest.raises(ValueError, match="max_seq_len"):
        net(long)


def test_no_mask_where_causality_is_enough():
    cpu = torch.device("cpu")
    assert attention_mask_for(8, 8, cpu) is None
    assert attention_mask_for(1, 8, cpu) is None
    assert attention_mask_for(2, 4, cpu)[0, 0].tolist() == [
        [True, True, True, False],
        [True, True, True, True],
    ]


def test_every_query_sees_something():
    """A softmax over nothing is NaN on some backends, though not on this CPU."""
    padding = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    documents = torch.tensor([[1, 1, 2, 2]]).expand(3, 4)
    mask = attention_mask_for(4, 4, torch.device("cpu"), padding, documents)
    assert mask.any(-1).all()
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_future_is_invisible():
    for family in FAMILIES:
        net = make(family)
        ids = token_ids(net.config, 1, 9)
        other = ids.clone()
        other[:, 5:] = (other[:, 5:] + 1) % net.config.vocab_size
        same = net(ids).logits[:, :5] - net(other).logits[:, :5]
        assert same.abs().max().item() <= 1e-5


def test_rotary_angles_survive_bf16():
    """In bf16 position 1001 would be 1000, and its angle wrong by a radian."""
    net = build("llama-tiny", "causal_lm").bfloat16()
    assert not list(net.buffers())
    table = rotary_table(torch.arange(2048)[None], 32, 10000.0)
    assert table.cos.dtype == torch.float32
    exact = torch.arange(2048, dtype=torch.float64)[:, None] / 10000.0 ** (
        torch.arange(0, 32, 2, dtype=torch.float64) / 32
    )
    assert float((table.cos[0, :, 0] - exact.cos()).abs().max()) < 2e-4
    x = torch.randn(1, 2048, 1, 32, dtype=torch.bfloat16)
    assert rotate(x, table).dtype == torch.bfloat16
    wide = rotate(x.double().float(), table)
    assert relative_error(rotate(x, table), wide) <= 2**-8


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_stays_close_to_fp32(family):
    config = preset(f"{family}-tiny", n_layers=2)
    net = build(config).eval()
    ids = token_ids(config, 2, 64)
    wide = net(ids, labels=ids).loss
    narrow = net.bfloat16()(ids, labels=ids).loss
    assert narrow.dtype == torch.float32
    assert abs((narrow - wide).item()) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_acts_in_training_alone(family):
    net = scramble(build(odd_config(family, 1).model_copy(update={"dropout": 0.3})))
    ids = token_ids(net.config, 1, 9)
    assert not torch.equal(net.train()(ids).logits, net(ids).logits)
    assert torch.equal(net.eval()(ids).logits, net(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_equals_eager(family):
    """The model is one graph: nothing in it stops the compiler."""
    net = make(family)
    ids = token_ids(net.config, 2, 8)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert relative_error(compiled(ids, labels=ids).loss, net(ids, labels=ids).loss) <= 1e-6
    bounds = torch.tensor([0, 5, 8, 16], dtype=torch.int32)
    packed = compiled(ids, cu_seqlens=bounds, targets=ids).loss
    assert relative_error(packed, net(ids, cu_seqlens=bounds, targets=ids).loss) <= 1e-6
