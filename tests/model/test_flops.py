import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import build, preset
from model.flops import (
    PEAK_TFLOPS,
    flops_per_token,
    mfu,
    non_embedding_parameters,
    parameters,
    peak_flops,
)
from tests.model.shapes import odd_config, token_ids

SMALL = [
    preset("gpt2-tiny", vocab_size=300),
    preset("llama-tiny", vocab_size=300),
    preset("llama-tiny", vocab_size=300, head_dim=48, tie_embeddings=False),
    odd_config("llama", 3),
    odd_config("gpt2", 3),
]


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("seq_len", [16, 32])
def test_flops_equal_torchs_count(config, seq_len):
    net = build(config)
    ids = token_ids(config, 2, seq_len)
    # The plain backend computes all scores, so the counter sees attention in full.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(ids, labels=ids).loss.backward()
    counted = counter.get_total_flops() / ids.numel()
    full, causal = flops_per_token(config, seq_len)
    assert full == pytest.approx(counted, rel=0.01)
    attention = 12 * config.n_layers * config.n_heads * config.head_dim * seq_len
    assert full - causal == pytest.approx(attention / 2)


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("head", ["causal_lm", "sequence"])
def test_parameters_are_those_of_the_model(config, head):
    net = build(config, head)
    assert parameters(config, head) == sum(p.numel() for p in net.parameters())


def test_non_embedding_parameters():
    config = preset("gpt2-124m")
    assert non_embedding_parameters(config) == 124_439_808 - (50257 + 1024) * 768
    untied = preset("gpt2-124m", tie_embeddings=False)
    assert non_embedding_parameters(untied) == non_embedding_parameters(config)


def test_mfu_of_a_known_run():
    """GPT-2 124M at 1024 tokens: 6·124M + 12·12·768·1024 FLOPs per token."""
    config = preset("gpt2-124m")
    full = flops_per_token(config, 1024).full
    assert full == pytest.approx(6 * 123.6e6 + 12 * 12 * 768 * 1024, rel=0.001)
    got = mfu(8 * 100_000, config, 1024, "NVIDIA A100-SXM4-80GB", n_devices=8)
    assert got.full == pytest.approx(100_000 * full / 312e12)
    assert got.causal < got.full


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
