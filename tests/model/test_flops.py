import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import ModelConfig, build, preset
from model.config import FAMILIES
from model.flops import (
    PEAK_TFLOPS,
    attention_pairs,
    flops_per_token,
    mfu,
    non_embedding_parameters,
    parameters,
    parts,
    peak_flops,
)
from model.visibility import masked
from tests.model.shapes import token_ids


def small(family, **changes):
    shape = {"n_layers": 3, "n_heads": 4, "d_model": 48, "vocab_size": 301, "max_seq_len": 64}
    labels = {"num_labels": 5, "pad_token_id": 0}
    return ModelConfig.model_validate({"family": family, **shape, **labels, **changes})


# What changes the tensors or the products of each family.
CONFIGS = [
    *(small(family) for family in FAMILIES),
    small("gpt2", tie_embeddings=False, vocab_multiple=64, mlp="relu", d_ff=77),
    small("llama", n_kv_heads=2, head_dim=24, bias=True, tie_embeddings=True),
    small("qwen3", n_kv_heads=1, head_dim=20, sliding_window=40, tie_embeddings=False),
    small("bert", type_vocab_size=3, vocab_multiple=128),
    small("roberta", pad_token_id=3, d_ff=50),
    small("modernbert", norm_bias=True, bias=True, sliding_window=66),
    small("custom", causal=False, norm_place="post", embedding_norm=True, mlp="relu2"),
    small("custom", positions="none", norm="layernorm", norm_bias=True, qk_norm=True),
    small("custom", causal=False, embedding_norm=True, positions="learned", mlp_bias=True),
]
CASES = [(config, head) for config in CONFIGS for head in config.heads]
NAMES = [f"{config.family}-{i}-{head}" for i, config in enumerate(CONFIGS) for head in config.heads]


@pytest.mark.parametrize(("config", "head"), CASES, ids=NAMES)
def test_parts_are_those_of_the_model(config, head):
    net = build(config, head)
    assert parameters(config, head) == sum(p.numel() for p in net.parameters())
    shapes = sorted(tuple(p.shape) for p in net.parameters())
    listed = [[part.shape] * part.copies for part in parts(config, head)]
    assert sorted(itertools.chain(*listed)) == shapes


def loss_of(net, head, ids):
    if head in ("causal_lm", "masked_lm"):
        return net(ids, labels=ids).loss
    if head == "pretraining":
        return net(ids, labels=ids, pair_labels=ids[:, 0] % 2).loss
    if head == "choice":
        return net(ids[None], labels=ids[:1, 0] % 2).loss
    labels = {"sequence": ids[:, 0] % 5, "token": ids % 5, "span": ids[:, :2] % 8}
    return net(ids, labels=labels[head]).loss


def counted_per_token(net, ids, compute):
    # The plain backend computes all scores, so the counter sees attention in full.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute().backward()
    return counter.get_total_flops() / ids.numel()


@pytest.mark.parametrize(("config", "head"), CASES, ids=NAMES)
@pytest.mark.parametrize("seq_len", [16, 32])
def test_flops_equal_torchs_count(config, head, seq_len):
    # Where rows only fill up the vocabulary they are computed, but they are no work.
    config = config.model_copy(update={"vocab_multiple": 1})
    net = build(config, head).train()
    ids = token_ids(config, 2, seq_len)
    counted = counted_per_token(net, ids, lambda: loss_of(net, head, ids))
    assert flops_per_token(config, seq_len, head).full == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_head_on_the_predicted_tokens_alone(family):
    config = small(family)
    net = build(config, "masked_lm").train()
    ids = token_ids(config, 4, 32)
    targets = torch.full_like(ids, -100)
    targets.view(-1)[: ids.numel() // 4] = 7
    counted = counted_per_token(net, ids, lambda: net(ids, targets=targets).loss)
    got = flops_per_token(config, 32, "masked_lm", predicted_fraction=0.25).full
    assert got == pytest.approx(counted, rel=0.01)
    head = 6 * (301 * 48 + 48 * 48)
    assert flops_per_token(config, 32).full - got == pytest.approx(0.75 * head)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("seq_len", [1, 5, 40, 63])
@pytest.mark.parametrize("window", [None, 2, 8, 100])
def test_pairs_are_those_of_the_mask(config, seq_len, window):
    layers = () if window is None else (1,)
    config = config.model_copy(update={"sliding_window": window, "sliding_layers": layers})
    seen = masked(config, seq_len, seq_len, torch.device("cpu"))
    for layer in range(3):
        mask = seen.mask_of(config.window_of(layer))
        if mask is None:
            allowed = torch.ones(seq_len, seq_len)
            allowed = allowed.tril() if config.causal else allowed
        else:
            allowed = mask[0, 0]
        exact = attention_pairs(config, layer, seq_len, in_full=False)
        full = attention_pairs(config, layer, seq_len, in_full=True)
        widest = int(allowed.sum(1).max())
        if config.causal:
            assert exact == int(allowed.sum())
            assert full == seq_len * widest
        else:
            # A query near an end has fewer keys; a window's kernel computes its place all the same.
            assert exact == full >= int(allowed.sum())
            reach = min(seq_len, window + 1) if layers and layer == 1 else seq_len
            assert full == seq_len * reach


def test_the_causal_convention_leaves_out_what_no_token_sees():
    config = small("llama")
    full, causal = flops_per_token(config, 32)
    attention = 12 * 3 * 48 * 32
    assert full - causal == pytest.approx(attention * 31 / 64)  # T(T-1)/2 of T² pairs
    sliding = small("qwen3", sliding_window=8, sliding_layers=(0, 2))
    whole = small("qwen3")
    less = flops_per_token(whole, 32).full - flops_per_token(sliding, 32).full
    assert less == pytest.approx(12 * 48 * (32 - 8) * 2)


def test_rows_that_fill_up_the_vocabulary_are_parameters_and_no_work():
    padded = small("gpt2", vocab_multiple=64)
    assert parameters(padded) - parameters(small("gpt2")) == (320 - 301) * 48
    assert flops_per_token(padded, 32) == flops_per_token(small("gpt2"), 32)


def test_a_head_that_the_family_does_not_have():
    with pytest.raises(ValueError, match="head: got 'causal_lm', expected one of masked_lm"):
        parameters(small("bert"), "causal_lm")


def test_non_embedding_parameters():
    config = preset("gpt2-124m")
    assert non_embedding_parameters(config) == 124_439_808 - (50257 + 1024) * 768
    untied = preset("gpt2-124m", tie_embeddings=False)
    assert non_embedding_parameters(untied) == non_embedding_parameters(config)


@pytest.mark.parametrize(
    ("name", "head", "count"),
    [
        # As counted from the released checkpoints.
        ("gpt2-124m", None, 124_439_808),
        ("bert-base", "masked_lm", 109_514_298),
        ("bert-base", "pretraining", 110_106_428),
        ("roberta-base", "masked_lm", 124_697_433),
        ("qwen3-0.6b", None, 596_049_920),
        ("llama-3.2-1b", None, 1_235_814_400),
        ("llama-3.1-8b", None, 8_030_261_248),
        ("modernbert-base", "masked_lm", 149_655_232),
    ],
)
def test_known_models(name, head, count):
    assert parameters(preset(name), head) == count


def test_mfu_of_a_known_run():
    """GPT-2 124M at 1024 tokens: 6·124M + 12·12·768·1024 FLOPs per token."""
    config = preset("gpt2-124m")
    full = flops_per_token(config, 1024).full
    assert full == pytest.approx(6 * 123.6e6 + 12 * 12 * 768 * 1024, rel=0.001)
    got = mfu(8 * 100_000, config, 1024, "NVIDIA A100-SXM4-80GB", n_devices=8)
    assert got.full == pytest.approx(100_000 * full / 312e12)
    assert got.causal < got.full
    masked_lm = mfu(1e5, preset("bert-base"), 128, "NVIDIA H200", predicted_fraction=0.15)
    everything = mfu(1e5, preset("bert-base"), 128, "NVIDIA H200", head="masked_lm")
    assert masked_lm.full < 0.85 * everything.full


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_peaks(name, tflops):
    assert peak_flops(name) == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    ["", "cpu", "NVIDIA H300", "A100", "nvidia h200", "NVIDIA H200 MIG 1g.18gb", "NVIDIA GB200"],
)
def test_an_unknown_device_is_never_guessed(name):
    assert mfu(1e5, preset("gpt2-124m"), 1024, name) is None


def test_a_dtype_without_tensor_cores_has_no_mfu():
    assert peak_flops("Tesla V100-SXM2-16GB", "bf16") is None
    assert peak_flops("Tesla V100-SXM2-16GB", "fp16") == 125e12
    assert mfu(1e5, preset("gpt2-124m"), 1024, "NVIDIA H200", dtype="fp32") is None
    assert all(0 < rate < 1e4 for rates in PEAK_TFLOPS.values() for rate in rates.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_this_device_is_in_the_table():
    assert peak_flops(torch.cuda.get_device_name()) is not None
