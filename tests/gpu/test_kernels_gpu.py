"""Kernels on a GPU: bf16, torch.compile, CUDA graphs, the whole model."""

import pytest
import torch

from model import ModelConfig, build
from model.rotary import Rotary

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
EPS = 1e-6
SHAPE = {"n_layers": 2, "n_heads": 4, "d_model": 256, "vocab_size": 512, "max_seq_len": 128}
MODELS = {
    "gpt2": ModelConfig(family="gpt2", dropout=0.0, **SHAPE),
    "bert": ModelConfig(family="bert", dropout=0.0, **SHAPE),
    "llama": ModelConfig(family="llama", n_kv_heads=2, **SHAPE),
    "qwen3": ModelConfig(family="qwen3", n_kv_heads=2, head_dim=128, **SHAPE),
}


def norm_case(width, is_centred, rows=1031):
    from model.kernels.norm import norm, reference

    tensors = [torch.randn(rows, width), torch.randn(rows, width), 1 + torch.randn(width) / 4]
    tensors += [torch.randn(width)] if is_centred else []

    def of(function):
        return lambda x, residual, weight, bias=None: function(
            x, residual, weight, bias, EPS, is_centred
        )

    return of(norm), of(reference), tensors


def rotary_case(n_heads, n_kv_heads, width, has_norm):
    from model.kernels.rotary import reference, split_and_turn

    angle = torch.randn(1, 131, 1, width // 2, device="cuda")
    tensors = [torch.randn(3, 131, n_heads + 2 * n_kv_heads, width)]
    tensors += [1 + torch.randn(width) / 4 for _ in range(2 * has_norm)]

    def of(function):
        return lambda packed, *gains: function(
            packed, Rotary.of(angle.cos(), angle.sin()), n_heads, n_kv_heads, gains, EPS
        )

    return of(split_and_turn), of(reference), tensors


CASES = {
    **{
        f"norm {width} {is_centred}": lambda width=width, is_centred=is_centred: norm_case(
            width, is_centred
        )
        for width in (64, 768, 1000, 4096, 8192, 16384)
        for is_centred in (False, True)
    },
    **{
        f"rotary {shape} {has_norm}": lambda shape=shape, has_norm=has_norm: rotary_case(
            *shape, has_norm
        )
        for shape in ((12, 12, 64), (32, 8, 128), (5, 1, 80))
        for has_norm in (False, True)
    },
}


def leaves_of(tensors, dtype):
    return [t.to("cuda", dtype).requires_grad_() for t in tensors]


def run(function, leaves):
    outputs = function(*leaves)
    onto = [torch.linspace(-1, 2, t.numel(), device="cuda").sin().view_as(t) for t in outputs]
    onto = [t.to(outputs[0].dtype) for t in onto]
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, leaves, onto)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 8e-3), ("float16", 2e-3)])
def test_16_bit_against_fp32(case, dtype, bound):
    """Of the reference in fp32 (rotations are in fp32 at most) on the same rounded inputs."""
    torch.manual_seed(0)
    ours, plain, tensors = CASES[case]()
    tensors = [t.to(getattr(torch, dtype)) for t in tensors]
    found = run(ours, leaves_of(tensors, getattr(torch, dtype)))
    want = run(plain, leaves_of(tensors, torch.float32))
    eager = run(plain, leaves_of(tensors, getattr(torch, dtype)))
    for number, (a, b, c) in enumerate(zip(found, want, eager, strict=True)):
        error, of_eager = ((t.float() - b).norm() / b.norm() for t in (a, c))
        assert error <= bound, (number, float(error))
        assert error <= 1.1 * of_eager + 1e-6, (number, float(error), float(of_eager))


@pytest.mark.parametrize("case", CASES)
def test_fp32_and_twice_the_same(case):
    torch.manual_seed(0)
    ours, plain, tensors = CASES[case]()
    found = run(ours, leaves_of(tensors, torch.float32))
    again = run(ours, leaves_of(tensors, torch.float32))
    want = run(plain, leaves_of(tensors, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    for a, b in zip(found, want, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("case", ["norm 768 True", "rotary (12, 12, 64) True"])
def test_compiled_without_breaks(case):
    torch.manual_seed(0)
    ours, _, tensors = CASES[case]()
    want = run(ours, leaves_of(tensors, torch.bfloat16))
    found = run(torch.compile(ours, fullgraph=True), leaves_of(tensors, torch.bfloat16))
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("case", ["norm 768 True", "rotary (12, 12, 64) True"])
def test_captured_in_a_graph(case):
    torch.manual_seed(0)
    ours, _, tensors = CASES[case]()
    leaves = leaves_of(tensors, torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(ours, leaves)  # compiles, which a capture does not allow
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(ours, leaves)
    with torch.no_grad():
        leaves[0].mul_(-2).add_(0.5)
    graph.replay()
    want = run(ours, leaves)
    assert all(torch.equal(a, b) for a, b in zip(captured, want, strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_whole_model(name, compiled):
    """In bf16 no further from fp32 than PyTorch's own operations, give or take a quarter."""
    torch.manual_seed(0)
    net = build(MODELS[name]).cuda().train()
    net.trunk.splits_documents = not compiled
    ids = torch.randint(0, 512, (4, 128), device="cuda")

    def gradients():
        net.zero_grad()
        net(ids, targets=ids).loss.backward()
        return torch.cat([p.grad.float().flatten() for p in net.parameters() if p.grad is not None])

    want = gradients()
    net.bfloat16()
    plain = gradients()
    net.set_kernels("triton")
    if compiled:
        for block in net.trunk.blocks:
            block.compile(fullgraph=True)
    error, of_plain = ((t - want).norm() / want.norm() for t in (gradients(), plain))
    assert error <= 1.25 * of_plain, (float(error), float(of_plain))
