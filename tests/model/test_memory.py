"""The memory estimate against what autograd really keeps."""

import itertools

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from model import ModelConfig, build, dot_product, preset
from model.attention import KVCache
from model.config import FAMILIES
from model.flops import parameters
from model.layers import _Rms
from model.memory import (
    RECOMPUTE,
    activation_bytes_per_token,
    kv_cache_bytes_per_token,
    loss_memory,
    training_memory,
)
from tests.model.shapes import token_ids

SEQ_LEN, BATCH_SIZE = 96, 3
TOKENS = SEQ_LEN * BATCH_SIZE
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def small(family, **changes):
    shape = {"n_layers": 4, "n_heads": 4, "d_model": 96, "vocab_size": 400, "max_seq_len": 128}
    values = {"family": family, **shape, "pad_token_id": 0, "dropout": 0.0, **changes}
    return ModelConfig.model_validate(values)


def kept_bytes(net, compute):
    """Bytes of the distinct storages that a forward pass keeps, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage  # held, so that no address is used again
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(storage.nbytes() for storage in seen.values())


def measured(config, head=None, dtype="fp32"):
    head = head or config.heads[0]
    net = build(config, head).to(DTYPES[dtype]).train()
    ids = token_ids(config, BATCH_SIZE, SEQ_LEN)
    if head in ("causal_lm", "masked_lm", "pretraining"):
        return kept_bytes(net, lambda: net(ids, targets=ids).loss)
    return kept_bytes(net, lambda: net(ids, labels=ids % 2).loss)


def estimated(config, head=None, dtype="fp32"):
    kept = activation_bytes_per_token(config, dtype=dtype, head=head)
    # Of the loss, the gradient of the output matrix is what the forward pass leaves behind.
    return TOKENS * kept + loss_memory(config, TOKENS, dtype=dtype, head=head).matrix


CONFIGS = [
    *(small(family) for family in FAMILIES),
    small("gpt2", mlp="relu"),
    small("bert", mlp="relu2"),
    small("llama", n_kv_heads=4, head_dim=48, mlp="geglu"),
    small("custom", norm="layernorm", norm_bias=True, positions="none"),
    small("custom", norm="layernorm", norm_bias=True, norm_place="post", causal=False),
]


class FusedNorm(torch.autograd.Function):
    """As on a GPU: the input is kept, and on a CPU torch keeps two fp32 copies of it besides."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, scale, weight)
        return (x.float() * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx, gradient):
        x, scale, weight = ctx.saved_tensors
        normed = (x * scale).to(x.dtype)
        onto = gradient * weight
        down = (onto - normed * (onto * normed).mean(-1, keepdim=True)) * scale
        return down.to(x.dtype), (gradient * normed).flatten(0, -2).sum(0), None


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(_Rms, "normed", lambda self, x: FusedNorm.apply(x, self.weight, self.eps))
    monkeypatch.setattr(dot_product, "_is_short_training", lambda *_: False)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.family}-{c.mlp}-{c.norm_place}")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_activations_are_those_that_autograd_keeps(config, dtype):
    assert estimated(config, dtype=dtype) == pytest.approx(measured(config, dtype=dtype), rel=0.03)


@pytest.mark.parametrize(
    ("family", "head"),
    [("gpt2", "token"), ("bert", "token"), ("modernbert", "token"), ("bert", "pretraining")],
)
def test_activations_of_other_heads(family, head):
    config = small(family)
    assert estimated(config, head) == pytest.approx(measured(config, head), rel=0.03)


def test_a_layer_of_gpt2_is_that_of_the_paper():
    """34·s·b·h bytes with a mask after both branches (Korthikanti et al. 2022, equation 2)."""
    per_layer = [
        activation_bytes_per_token(preset("gpt2-124m", n_layers=n, dropout=0.1)) for n in (2, 3)
    ]
    without_statistics = per_layer[1] - per_layer[0] - 2 * 8 - 4 * 12
    assert without_statistics == 34 * 768


def peak_bytes(compute):
    """The most that is allocated at once, as the allocator tells the profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        compute()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert len(events) > 100
    steps = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(steps))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_the_peak_of_a_step(family, dtype, recompute):
    config = small(family, n_layers=8, d_model=128, vocab_size=500)
    net = build(config, config.heads[0]).to(DTYPES[dtype]).train()
    net.trunk.set_recompute(recompute)
    ids = token_ids(config, 8, 128)

    def step():
        net(ids, targets=ids).loss.backward()

    step()  # so that gradients are there
    found = training_memory(config, 128, 8, dtype=dtype, recompute=recompute, device_type="cpu")
    states = found.weights + found.gradients + found.optimizer
    assert found.total - states == pytest.approx(peak_bytes(step), rel=0.15)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_peak_where_scores_take_most(family, dtype):
    config = small(family, n_layers=1, n_heads=2, d_model=32, vocab_size=20_000)
    net = build(config, config.heads[0]).to(DTYPES[dtype]).train()
    ids = token_ids(config, 4, 128)

    def step():
        net(ids, targets=ids).loss.backward()

    step()  # so that gradients are there
    found = training_memory(config, 128, 4, dtype=dtype, device_type="cpu")
    assert found.logits + found.activations == pytest.approx(peak_bytes(step), rel=0.03)


@pytest.mark.parametrize(
    ("stage", "bytes_per_parameter"),
    [(0, 16), (1, 4 + 12 / 64), (2, 2 + 14 / 64), (3, 16 / 64)],
)
def test_zero_divides_as_its_paper_says(stage, bytes_per_parameter):
    """Figure 1 of Rajbhandari et al. 2020: 64 devices, K = 12."""
    config = preset("llama-8b")
    found = training_memory(config, 128, zero_stage=stage, n_devices=64)
    states = found.weights + found.gradients + found.optimizer
    assert states == pytest.approx(bytes_per_parameter * parameters(config))
    assert found.total == states + found.activations + found.logits
    assert found.recomputed == 0


def test_fp32():
    config = small("gpt2")
    plain = training_memory(config, 64, 2, dtype="fp32", zero_stage=0)
    assert (plain.weights, plain.optimizer) == (4 * parameters(config), 8 * parameters(config))
    assert training_memory(config, 64, 2, dtype="fp32").optimizer == 12 * parameters(config)
    assert training_memory(config, 64, 2, head="sequence").logits == 0


def test_the_loss_over_the_vocabulary():
    """All in one chunk and block: scores, and their log-probabilities in fp32."""
    config = small("gpt2")
    found = loss_memory(config, 128, dtype="fp32")
    assert found.scores == 2 * (4 * 128 * 400)
    assert (found.matrix, found.hidden) == (4 * 400 * config.d_model, 4 * 128 * config.d_model)
    low = loss_memory(config, 128)
    assert (low.scores, low.hidden) == ((2 + 4 + 4) * 128 * 400, 2 * 128 * config.d_model)
    quarter = training_memory(config, 64, 2, dtype="fp32", predicted_fraction=0.25)
    assert quarter.logits == loss_memory(config, 32, dtype="fp32").total < found.total
    # More than a chunk: only its own scores are there.
    wide = small("gpt2", vocab_size=50_304)
    many = loss_memory(wide, 65_536, device_type="cpu").scores
    assert many == pytest.approx(loss_memory(wide, 1024, device_type="cpu").scores)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_kv_cache(family):
    config = small(family)
    cache = KVCache(config, 1, 10, torch.device("cpu"), torch.bfloat16)
    bytes_of_10 = cache.keys.nbytes + cache.values.nbytes
    assert kv_cache_bytes_per_token(config) * 10 == bytes_of_10


def test_a_head_that_the_family_does_not_have():
    with pytest.raises(ValueError, match="head: got 'masked_lm'"):
        training_memory(small("gpt2"), 64, head="masked_lm")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("recompute", ["none", "block", "attention", "mlp"])
def test_the_peak_of_a_device(family, recompute, monkeypatch):
    monkeypatch.undo()  # the device has the fused norm
    config = small(family, n_layers=6, n_heads=8, d_model=512, vocab_size=8192, max_seq_len=512)
    net = build(config, config.heads[0]).cuda().bfloat16().train()
    net.trunk.set_recompute(recompute)
    ids = token_ids(config, 8, 512).cuda()
    net(ids, targets=ids).loss.backward()  # gradients and workspaces are there
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    net(ids, targets=ids).loss.backward()
    peak = torch.cuda.max_memory_allocated() - before
    found = training_memory(config, 512, 8, recompute=recompute)
    states = found.weights + found.gradients + found.optimizer
    assert found.total - states == pytest.approx(peak, rel=0.25)
