import itertools

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model import ModelConfig, build
from model.attention import KVCache
from model.generate import generate, generate_texts, sample, stream, stream_texts
from tests.model.shapes import CAUSAL, odd_config, relative_error, scramble, token_ids

CPU = torch.device("cpu")


def make(family, seed=1, **changes):
    return scramble(build(odd_config(family, seed).model_copy(update=changes)).eval())


def sliding():
    """Two of three layers see four tokens, with grouped heads."""
    shape = {"n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_model": 48, "vocab_size": 101}
    window = {"sliding_window": 4, "sliding_layers": (0, 2), "max_seq_len": 64}
    return ModelConfig(family="qwen3", **shape, **window)


def nowhere():
    """Without positions, and with a cap on the logits."""
    shape = {"n_layers": 2, "n_heads": 3, "d_model": 36, "vocab_size": 101, "max_seq_len": 64}
    return ModelConfig(family="custom", **shape, positions="none", logit_softcap=3.0)


CONFIGS = [*(odd_config(family, seed) for family in CAUSAL for seed in range(4)), sliding()]
CONFIGS.append(nowhere())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.family)
def test_logits_with_cache_equal_logits_without(config):
    net = scramble(build(config).eval())
    ids = token_ids(net.config, 2, 14)
    whole = net(ids).logits
    cache = KVCache(net.config, 2, 14, CPU, torch.float32)
    pieces = []
    for start, end in ((0, 6), (6, 7), (7, 11), (11, 12), (12, 14)):
        pieces.append(net(ids[:, start:end], cache=cache).logits)
    assert cache.length == 14
    assert relative_error(torch.cat(pieces, 1), whole) <= 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.family)
def test_cache_with_padding(config):
    net = scramble(build(config).eval())
    ids = token_ids(net.config, 2, 10)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    whole = net(ids, mask).logits
    cache = KVCache(net.config, 2, 10, CPU, torch.float32)
    pieces = [net(ids[:, :7], mask[:, :7], cache=cache).logits]
    pieces += [net(ids[:, i : i + 1], mask[:, : i + 1], cache=cache).logits for i in (7, 8, 9)]
    assert relative_error(torch.cat(pieces, 1)[mask == 1], whole[mask == 1]) <= 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.family)
def test_a_padded_row_continues_as_if_alone(config):
    net = scramble(build(config.model_copy(update={"eos_token_id": None})).eval())
    short, long = token_ids(net.config, 1, 4), token_ids(net.config, 1, 9)
    ids = torch.cat([torch.cat([long[:, :5], short], 1), long])
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    both = generate(net, ids, 12, attention_mask=mask)
    assert both[0, 5:].tolist() == generate(net, short, 12)[0].tolist()
    assert both[1].tolist() == generate(net, long, 12)[0].tolist()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.family)
def test_greedy_text_is_that_of_whole_passes(config):
    net = scramble(build(config.model_copy(update={"eos_token_id": None})).eval())
    ids = token_ids(net.config, 2, 5)
    made = generate(net, ids, 10)
    for end in range(5, 15):
        assert made[:, end].tolist() == net(made[:, :end]).logits[:, -1].argmax(-1).tolist()


def test_stops_at_any_eos_and_fills_with_pad():
    net = make("qwen3", eos_token_id=None, pad_token_id=None)
    ids = token_ids(net.config, 2, 4)
    free = generate(net, ids, 16)
    assert (free > 0).all()
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
    for nothing in (0.0, 1e-40):  # divided by the latter, scores would be infinite
        assert sample(q.log(), temperature=nothing).tolist() == [2]


LIMITS = [
    dict(zip(("temperature", "top_k", "top_p", "min_p"), values, strict=True))
    for values in itertools.product((0.7, 1.3), (None, 1, 5), (None, 0.6), (None, 0.0, 0.2, 1.0))
]


@pytest.mark.parametrize("limits", LIMITS)
def test_sampling_is_that_of_transformers(limits):
    """The same tokens are left, with the same probabilities, in each combination of limits."""
    logits = 2 * torch.randn(3, 23)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(limits["temperature"])])
    for key, warper in (
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ):
        if limits[key] is not None:
            warpers.append(warper(limits[key]))
    expected = warpers(None, logits.clone()).softmax(-1)
    rows = logits.repeat_interleave(8000, 0)
    draws = sample(rows, torch.Generator().manual_seed(0), **limits).view(3, 8000)
    for row in range(3):
        seen = torch.bincount(draws[row], minlength=23) / 8000
        assert set(seen.nonzero().flatten().tolist()) <= set(
            expected[row].nonzero().flatten().tolist()
        )
        assert torch.allclose(seen, expected[row], atol=0.025)


def test_min_p_keeps_the_tokens_near_the_likeliest():
    # 0.5 · 0.3 = 0.15: a token of exactly that stays.
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    assert (frequencies(logits, temperature=1.0, min_p=0.2999)[:3] > 0).all()
    seen = frequencies(logits, temperature=1.0, min_p=0.31)
    assert torch.allclose(seen, torch.tensor([2 / 3, 1 / 3, 0, 0]), atol=0.015)
    assert seen[2:].sum() == 0


def test_a_stream_is_the_generation_token_by_token():
    net = make("llama", eos_token_id=None)
    ids = token_ids(net.config, 2, 4)
    options = {"temperature": 1.5, "top_k": 9, "seed": 3}
    whole = generate(net, ids, 12, **options)
    net.train()
    calls = []
    hook = net.register_forward_hook(lambda *_: calls.append(1))
    columns = stream(net, ids, 12, **options)
    for number, expected in enumerate(whole[:, 4:].t(), start=1):
        assert next(columns).tolist() == expected.tolist()
        assert len(calls) == number  # nothing is computed ahead
        assert torch.is_grad_enabled()  # the caller's own computations are not touched
    assert next(columns, None) is None
    hook.remove()
    assert net.training
    abandoned = stream(net, ids, 12)
    next(abandoned)
    abandoned.close()
    assert net.training


def test_a_row_ends_when_the_caller_says_so():
    net = make("qwen3", eos_token_id=None, pad_token_id=0)
    ids = token_ids(net.config, 3, 4)
    free = generate(net, ids, 8)
    assert (free > 0).all()
    asked = []

    def is_done(row, token):
        asked.append((row, token))
        return row == 1 or (row == 2 and len(asked) > 5)

    ended = generate(net, ids, 8, is_done=is_done)
    assert ended.shape == free.shape
    assert ended[0].tolist() == free[0].tolist()
    assert ended[1].tolist() == [*free[1, :5].tolist(), *[0] * 7]
    assert ended[2].tolist() == [*free[2, :7].tolist(), *[0] * 5]
    order = [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (2, 2), *((0, n) for n in range(3, 8))]
    assert asked == [(row, int(free[row, 4 + n])) for row, n in order]


@pytest.fixture
def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def speaker(family="llama", **changes):
    config = odd_config(family, 1).model_copy(
        update={"vocab_size": 256, "max_seq_len": 64, "eos_token_id": None, **changes}
    )
    return scramble(build(config).eval())


@pytest.mark.parametrize("family", CAUSAL)
def test_texts_of_several_prompts_are_those_of_each_alone(family, byte_tokenizer):
    net = speaker(family)
    prompts = ["今天", "a", "def main():"]
    together = generate_texts(net, byte_tokenizer, prompts, 20)
    alone = [generate_texts(net, byte_tokenizer, [prompt], 20)[0] for prompt in prompts]
    assert together == alone
    ids = torch.tensor([byte_tokenizer.encode("a").ids])
    whole = byte_tokenizer.decode(generate(net, ids, 20)[0].tolist())
    assert "a" + alone[1] == whole


def test_a_stop_string_ends_its_own_text_alone(byte_tokenizer):
    net = speaker()
    prompts = ["今天", "a", "def main():"]
    free = generate_texts(net, byte_tokenizer, prompts, 30)
    stop = free[1][3:5]
    assert len(stop) == 2
    assert stop not in free[1][:4]
    stopped = generate_texts(net, byte_tokenizer, prompts, 30, stop=[stop, "never seen"])
    assert stopped == [text.split(stop)[0] for text in free]
    assert stopped[1] == free[1][:3]
    # Pieces come as they are made, and join to the same.
    seen = list(stream_texts(net, byte_tokenizer, prompts, 30, stop=[stop]))
    assert len(seen) > 20
    assert ["".join(p for r, p in seen if r == row) for row in range(3)] == stopped


def test_no_text_after_the_last_stop_is_computed(byte_tokenizer):
    net = speaker()
    free = generate_texts(net, byte_tokenizer, ["a"], 30)[0]
    calls = []
    hook = net.register_forward_hook(lambda *_: calls.append(1))
    generate_texts(net, byte_tokenizer, ["a"], 30, stop=[free[:1]])
    hook.remove()
    assert len(calls) <= 4  # one character has at most four bytes


def test_an_eos_token_is_no_text(byte_tokenizer):
    net = speaker()
    ids = torch.tensor([byte_tokenizer.encode("a").ids])
    fourth = int(generate(net, ids, 4)[0, -1])
    net.config = net.config.model_copy(update={"eos_token_id": fourth})
    made = generate(net, ids, 30)[0, 1:].tolist()
    expected = byte_tokenizer.decode(made[:-1])
    assert made[-1] == fourth
    assert generate_texts(net, byte_tokenizer, ["a"], 30) == [expected]


@pytest.mark.parametrize(
    ("changes", "prompt", "message"),
    [
        ({}, "", "prompt: got an empty text"),
        ({"vocab_size": 31}, "a", "expected less than vocab_size=31"),
    ],
)
def test_prompts_that_are_refused(changes, prompt, message, byte_tokenizer):
    with pytest.raises(ValueError, match=message):
        generate_texts(speaker(**changes), byte_tokenizer, [prompt], 3)


def test_an_empty_prompt_starts_with_the_begin_of_text_token(byte_tokenizer):
    net = speaker(bos_token_id=65)
    start = torch.tensor([[65]])
    expected = byte_tokenizer.decode(generate(net, start, 9)[0].tolist())
    said = generate_texts(net, byte_tokenizer, [""], 9)[0]
    assert byte_tokenizer.decode([65]) + said == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
        ({"min_p": -0.1}, "min_p: got -0.1"),
        ({"min_p": 1.5}, "min_p: got 1.5"),
        ({"max_new_tokens": 10_000}, "positions are learned"),
        ({"input_ids": torch.ones(1, 65, dtype=torch.long)}, "prompt: got 65 tokens"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "expected it on the left"),
    ],
)
def test_refusals(options, message):
    net = make("gpt2")
    arguments = {"input_ids": token_ids(net.config, 1, 4), "max_new_tokens": 3}
    with pytest.raises(ValueError, match=message):
        generate(net, **{**arguments, **options})


def test_rows_that_fill_up_the_vocabulary_are_no_tokens():
    net = make("llama", vocab_multiple=64, vocab_size=31, tie_embeddings=False)
    with torch.no_grad():
        net.unembedding.weight[31:] = 100 * net.unembedding.weight[:1].abs()
    made = generate(net, token_ids(net.config, 4, 5), 12, temperature=5.0, seed=0)
    assert int(made.max()) < 31


def test_a_model_that_sees_both_sides_does_not_speak():
    net = build(odd_config("bert", 1), "masked_lm")
    with pytest.raises(ValueError, match="bert sees both sides"):
        generate(net, token_ids(net.config, 1, 4), 3)


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
