import pytest
import torch

from model import build
from model.attention import KVCache
from model.generate import generate, sample
from tests.model.shapes import odd_config, relative_error, scramble, token_ids

CPU = torch.device("cpu")


def make(family, seed=1, **changes):
    return scramble(build(odd_config(family, seed).model_copy(update=changes)).eval())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("seed", range(4))
def test_logits_with_cache_equal_logits_without(family, seed):
    net = make(family, seed)
    ids = token_ids(net.config, 2, 14)
    whole = net(ids).logits
    cache = KVCache(net.config, 2, 14, CPU, torch.float32)
    pieces = []
    for start, end in ((0, 6), (6, 7), (7, 11), (11, 12), (12, 14)):
        pieces.append(net(ids[:, start:end], cache=cache).logits)
    assert cache.length == 14
    assert relative_error(torch.cat(pieces, 1), whole) <= 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_cache_with_padding(family):
    net = make(family)
    ids = token_ids(net.config, 2, 10)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    whole = net(ids, mask).logits
    cache = KVCache(net.config, 2, 10, CPU, torch.float32)
    pieces = [net(ids[:, :7], mask[:, :7], cache=cache).logits]
    pieces += [net(ids[:, i : i + 1], mask[:, : i + 1], cache=cache).logits for i in (7, 8, 9)]
    assert relative_error(torch.cat(pieces, 1)[mask == 1], whole[mask == 1]) <= 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_padded_row_continues_as_if_alone(family):
    net = make(family, eos_token_id=None)
    short, long = token_ids(net.config, 1, 4), token_ids(net.config, 1, 9)
    ids = torch.cat([torch.cat([long[:, :5], short], 1), long])
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    both = generate(net, ids, 12, attention_mask=mask)
    assert both[0, 5:].tolist() == generate(net, short, 12)[0].tolist()
    assert both[1].tolist() == generate(net, long, 12)[0].tolist()


def test_stops_at_any_eos_and_fills_with_pad():
    net = make("llama", eos_token_id=None, pad_token_id=None)
    ids = token_ids(net.config, 2, 4)
    free = generate(net, ids, 16)
    first, second = int(free[0, 6]), int(free[1, 9])
    net.config = net.config.model_copy(update={"eos_token_id": (first, second), "pad_token_id": 0})
    ended = generate(net, ids, 16)
    for row in range(2):
        tokens = free[row, 4:].tolist()
        stop = min(tokens.index(t) for t in (first, second) if t in tokens)
        expected = free[row, 4:][: stop + 1].tolist()
        assert ended[row, 4:].tolist() == expected + [0] * (ended.shape[1] - 4 - len(expected))
    assert ended.shape[1] < free.shape[1]


def test_training_mode_is_restored():
    net = make("gpt2", dropout=0.5).train()
    ids = token_ids(net.config, 1, 4)
    assert generate(net, ids, 8).tolist() == generate(net, ids, 8).tolist()
    assert net.training


def test_a_seed_repeats_itself():
    net = make("llama", eos_token_id=None)
    ids = token_ids(net.config, 2, 4)
    texts = [generate(net, ids, 20, temperature=2.0, seed=seed).tolist() for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def frequencies(logits, **options):
    draws = sample(logits.expand(20000, -1), generator=torch.Generator().manual_seed(0), **options)
    return torch.bincount(draws, minlength=logits.shape[-1]) / 20000


def test_sampling_follows_the_probabilities():
    p = torch.tensor([[0.5, 0.2, 0.2, 0.1]])
    assert torch.allclose(frequencies(p.log(), temperature=1.0), p[0], atol=0.015)
    sharp = p**2 / (p**2).sum()
    assert torch.allclose(frequencies(p.log(), temperature=0.5), sharp[0], atol=0.015)
    top2 = frequencies(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), temperature=1.0, top_k=2)
    assert torch.allclose(top2, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.015)
    # 0.5 does not reach 0.6, 0.5 + 0.3 does; 0.5 alone reaches 0.5.
    q = torch.tensor([[0.05, 0.3, 0.5, 0.15]])
    nucleus = frequencies(q.log(), temperature=1.0, top_p=0.6)
    assert torch.allclose(nucleus, torch.tensor([0.0, 0.375, 0.625, 0.0]), atol=0.015)
    assert frequencies(q.log(), temperature=1.0, top_p=1e-6)[2] == 1
    assert sample(q.log(), temperature=0.0).tolist() == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
        ({"max_new_tokens": 10_000}, "positions are learned"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "expected it on the left"),
    ],
)
def test_refusals(options, message):
    net = make("gpt2")
    with pytest.raises(ValueError, match=message):
        generate(net, token_ids(net.config, 1, 4), **{"max_new_tokens": 3, **options})


def test_an_empty_prompt_is_refused():
    net = make("gpt2")
    with pytest.raises(ValueError, match="begin-of-text"):
        generate(net, torch.empty(1, 0, dtype=torch.long), 3)


def test_learned_positions_may_be_used_up_to_the_last():
    net = make("gpt2", eos_token_id=None)
    room = net.config.max_seq_len - 4 + 1
    ids = token_ids(net.config, 1, 4)
    assert generate(net, ids, room).shape == (1, net.config.max_seq_len + 1)
    with pytest.raises(ValueError, match=f"at most {room}"):
        generate(net, ids, room + 1)
