"""The whole model with kernels, against itself without."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model import ModelConfig, build
from model.kernels import cross_entropy_rows_triton
from model.kernels.launching import IS_INTERPRETED
from tests.model.kernels.interpreted.closeness import assert_close

SHAPE = {"n_layers": 2, "n_heads": 4, "d_model": 48, "vocab_size": 61, "max_seq_len": 32}
MODELS = {
    "gpt2": ModelConfig(family="gpt2", dropout=0.0, **SHAPE),
    "bert": ModelConfig(family="bert", dropout=0.0, **SHAPE),  # norms after the sums
    "llama": ModelConfig(family="llama", n_kv_heads=2, **SHAPE),
    "qwen3": ModelConfig(family="qwen3", n_kv_heads=2, head_dim=16, **SHAPE),  # QK norm
    "modernbert": ModelConfig(family="modernbert", dropout=0.0, **{**SHAPE, "n_layers": 4}),
    "unturned": ModelConfig(family="custom", positions="learned", qk_norm=True, **SHAPE),
}
# Norms and rotary operations of one forward pass.
LAUNCHES = {
    "gpt2": (5, 0),
    "bert": (5, 0),
    "llama": (5, 2),
    "qwen3": (5, 2),
    "modernbert": (9, 4),
    "unturned": (5, 0),
}


class Counting(TorchDispatchMode):
    """Counts our operations."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.seen[str(function)] += 1
        return function(*arguments, **(named or {}))


def new_net(name):
    torch.manual_seed(4)
    net = build(MODELS[name]).train()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return net


def step(net, ids):
    loss = net(ids, targets=ids).loss
    loss.backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    return [loss.detach(), *gradients]


def test_the_interpreter_runs():
    assert IS_INTERPRETED


@pytest.fixture
def rows_of_logits(monkeypatch):
    """How many the loss's kernel was given, at each of its calls."""
    rows_, found = cross_entropy_rows_triton.rows_, []

    def counted(logits, *arguments, **named):
        found.append(len(logits))
        return rows_(logits, *arguments, **named)

    monkeypatch.setattr(cross_entropy_rows_triton, "rows_", counted)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_kernels_change_rounding_alone(name, rows_of_logits):
    net, ids = new_net(name), torch.randint(0, 61, (2, 5))
    want = step(net, ids)
    assert not rows_of_logits
    net.set_kernels("triton")
    with Counting() as counting:
        assert_close(step(net, ids), want, 1e-4)
    assert rows_of_logits == [ids.numel()]
    for operation, launches in zip(("norm", "split_and_turn"), LAUNCHES[name], strict=True):
        assert counting.seen[f"ingot.{operation}.default"] == launches
        assert counting.seen[f"ingot.{operation}_backward.default"] == launches
    net.set_kernels("torch")
    rows_of_logits.clear()
    assert all(torch.equal(a, b) for a, b in zip(step(net, ids), want, strict=True))
    assert not rows_of_logits


@pytest.mark.parametrize("part", ["block", "attention", "mlp"])
def test_what_is_computed_again_comes_out_the_same(part):
    net, ids = new_net("qwen3"), torch.randint(0, 61, (2, 5))
    net.set_kernels("triton")
    want = step(net, ids)
    net.trunk.set_recompute(part)
    assert all(torch.equal(a, b) for a, b in zip(step(net, ids), want, strict=True))


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_compiled_blocks_have_no_breaks(name):
    net, ids = new_net(name), torch.randint(0, 61, (2, 5))
    net.trunk.splits_documents = False
    net.set_kernels("triton")
    want = step(net, ids)
    for block in net.trunk.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    assert_close(step(net, ids), want, 1e-5)
