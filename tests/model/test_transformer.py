"""Padding, packing, positions and precision of the trunk."""

import pytest
import torch

from model import build, preset
from model.attention import KVCache
from model.config import ModelConfig
from model.rotary import rotary_table, rotate
from model.visibility import document_layout, masked
from tests.model.shapes import (
    BIDIRECTIONAL,
    CAUSAL,
    FAMILIES,
    LM_HEAD,
    odd_config,
    relative_error,
    scramble,
    token_ids,
)


def make(family, seed=1, **overrides):
    config = odd_config(family, seed).model_copy(update=overrides)
    return scramble(build(config, LM_HEAD[family]).eval())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(family, side):
    net = make(family)
    text, filler = token_ids(net.config, 1, 7), token_ids(net.config, 1, 4)
    alone = net(text).logits
    order = (filler, text) if side == "left" else (text, filler)
    mask = torch.cat([torch.full_like(t, int(t is text)) for t in order], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for unpads in (True, False):
        net.trunk.unpads = unpads
        padded = net(torch.cat(order, dim=1), mask, positions).logits
        assert relative_error(padded[mask == 1], alone[0]) <= 1e-5
        assert padded.isfinite().all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_unpadded_equals_padded(family, seed):
    """Loss and gradients too: the padding takes no part in either."""
    net = make(family, seed)
    ids = token_ids(net.config, 3, 12)
    mask = (torch.arange(12) < torch.tensor([[12], [5], [1]])).long()
    targets = token_ids(net.config, 3, 12).masked_fill(mask == 0, -100)
    found = []
    for unpads in (True, False):
        net.trunk.unpads = unpads
        net.zero_grad()
        out = net.train()(ids, mask, targets=targets)
        out.loss.backward()
        found.append((out.loss, [p.grad.clone() for p in net.parameters()]))
    assert relative_error(found[0][0], found[1][0]) <= 1e-6
    for unpadded, padded in zip(found[0][1], found[1][1], strict=True):
        assert float((unpadded - padded).abs().max()) <= 1e-5 * max(1.0, float(padded.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_nothing_but_padding(family):
    net = make(family)
    ids = token_ids(net.config, 2, 5)
    out = net(ids, torch.zeros_like(ids), targets=torch.full_like(ids, -100))
    assert out.loss.item() == 0


def test_rotary_is_relative_so_left_padding_needs_no_positions():
    net = make("llama")
    net.trunk.unpads = False
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


@pytest.mark.parametrize("splits", [True, False], ids=["one by one", "masked"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(6))
def test_packed_documents_equal_each_alone(family, seed, splits):
    """Causal, bidirectional and sliding-window attention: qwen3 and modernbert have windows."""
    net = make(family, seed)
    net.trunk.splits_documents = splits
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
    # No document predicts the next one's first token.
    counts = (3, 7) if family in CAUSAL else (4, 8)
    sums = [n * net(t, labels=t).loss for n, t in zip(counts, (first, second), strict=True)]
    (sum(sums) / sum(counts)).backward()
    for got, p in zip(packed, net.parameters(), strict=True):
        assert float((got - p.grad).abs().max()) <= 1e-5 * max(1.0, float(p.grad.abs().max()))


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
    with pytest.raises(ValueError, match=r"prefix_mask: got shape \(1, 6\), expected \(2, 6\)"):
        net(ids, prefix_mask=torch.ones(1, 6, dtype=torch.bool))
    cache = KVCache(net.config, 2, 5, CPU, torch.float32)
    with pytest.raises(ValueError, match="cache: got 6 tokens, expected at most max_len=5"):
        net(ids, cache=cache)
    long = token_ids(net.config, 1, net.config.max_seq_len + 1)
    with pytest.raises(ValueError, match="max_seq_len"):
        net(long)


TINY = {"n_layers": 2, "n_heads": 2, "d_model": 8, "vocab_size": 9, "max_seq_len": 64}
CPU = torch.device("cpu")


def mask_of(q_len, kv_len, **more):
    config = ModelConfig(family="gpt2", **TINY)
    return masked(config, q_len, kv_len, CPU, **more).mask


def test_no_mask_where_causality_is_enough():
    assert mask_of(8, 8) is None
    assert mask_of(1, 8) is None
    assert mask_of(2, 4)[0, 0].tolist() == [
        [True, True, True, False],
        [True, True, True, True],
    ]


def test_every_query_sees_something():
    """A softmax over nothing is NaN on some backends, though not on this CPU."""
    padding = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    documents = torch.tensor([[1, 1, 2, 2]]).expand(3, 4)
    mask = mask_of(4, 4, attention_mask=padding, documents=documents)
    assert mask.any(-1).all()
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_windows_count_as_each_family_does():
    """Qwen3: itself and window - 1 before. ModernBERT: half the window on each side."""
    causal = ModelConfig(family="qwen3", **TINY, head_dim=4, sliding_window=3, sliding_layers=(1,))
    seen = masked(causal, 5, 5, CPU)
    assert seen.mask is None
    assert seen.local_mask[0, 0].sum(-1).tolist() == [1, 2, 3, 3, 3]
    both = ModelConfig(family="modernbert", **TINY, sliding_window=4, sliding_layers=(1,))
    seen = masked(both, 6, 6, CPU)
    assert seen.mask is None
    assert seen.local_mask[0, 0].sum(-1).tolist() == [3, 4, 5, 5, 4, 3]


@pytest.mark.parametrize("packed", [False, True])
def test_a_prefix_sees_itself_whole(packed):
    """Causal after the prefix, both ways within it, never across documents (Raffel et al. 2020)."""
    net = make("llama")
    ids = token_ids(net.config, 1, 10)
    bounds = torch.tensor([0, 4, 10] if packed else [0, 10], dtype=torch.int32)
    prefix = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0, 0, 0]] if packed else [[1] * 4 + [0] * 6])
    outputs = []
    for splits in (True, False):
        net.trunk.splits_documents = splits
        outputs.append(net(ids, cu_seqlens=bounds, prefix_mask=prefix.bool()).logits)
    assert relative_error(outputs[0], outputs[1]) <= 1e-5
    changed = ids.clone()
    changed[0, 6 if packed else 3] = (changed[0, 6 if packed else 3] + 1) % net.config.vocab_size
    again = net(changed, cu_seqlens=bounds, prefix_mask=prefix.bool()).logits
    moved = (again - outputs[1]).abs().amax(-1)[0] > 1e-6
    expected = [0] * 4 + [1] * 6 if packed else [1] * 10
    assert moved.int().tolist() == expected  # the prefix sees its own end; the other document not


def test_a_prefix_with_a_cache_equals_the_whole_text():
    net = make("qwen3", 5)
    ids = token_ids(net.config, 2, 9)
    prefix = torch.arange(9) < torch.tensor([[4], [2]])
    whole = net(ids, prefix_mask=prefix).logits
    cache = KVCache(net.config, 2, 9, CPU, torch.float32)
    pieces = [net(ids[:, :5], prefix_mask=prefix[:, :5], cache=cache).logits]
    pieces += [net(ids[:, 5:], prefix_mask=prefix, cache=cache).logits]
    assert relative_error(torch.cat(pieces, 1), whole) <= 1e-5


def test_future_is_invisible():
    for family in CAUSAL:
        net = make(family)
        ids = token_ids(net.config, 1, 9)
        other = ids.clone()
        other[:, 5:] = (other[:, 5:] + 1) % net.config.vocab_size
        same = net(ids).logits[:, :5] - net(other).logits[:, :5]
        assert same.abs().max().item() <= 1e-5
    for family in BIDIRECTIONAL:
        net = make(family)
        ids = token_ids(net.config, 1, 9)
        other = ids.clone()
        other[:, 1] = ids[:, 2]
        assert (net(ids).logits[:, 0] - net(other).logits[:, 0]).abs().max().item() > 1e-5


def test_rotary_angles_survive_bf16():
    """In bf16 position 1001 would be 1000, and its angle wrong by a radian."""
    net = build("llama-tiny", "causal_lm").bfloat16()
    assert not list(net.buffers())
    table = rotary_table(torch.arange(2048)[None], net.config)
    assert table.cos.dtype == torch.float32
    exact = torch.arange(2048, dtype=torch.float64)[:, None] / 10000.0 ** (
        torch.arange(0, 32, 2, dtype=torch.float64) / 32
    )
    assert float((table.cos[0, :, 0, :16] - exact.cos()).abs().max()) < 2e-4
    x = torch.randn(1, 2048, 1, 32, dtype=torch.bfloat16)
    assert rotate(x, table).dtype == torch.bfloat16
    wide = rotate(x.double().float(), table)
    assert relative_error(rotate(x, table), wide) <= 2**-8


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_stays_close_to_fp32(family):
    name = "bert" if family == "roberta" else family
    config = preset(f"{name}-tiny", n_layers=2)
    net = build(config, LM_HEAD[name]).eval()
    ids = token_ids(config, 2, 64)
    wide = net(ids, labels=ids).loss
    narrow = net.bfloat16()(ids, labels=ids).loss
    assert narrow.dtype == torch.float32
    assert abs((narrow - wide).item()) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_acts_in_training_alone(family):
    net = make(family, dropout=0.3)
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
