"""Linear maps in 8 bits, emulated on a CPU, against the same arithmetic in plain torch."""

import sys

import pytest
import torch

from model import build, float8, preset
from model.config import ModelConfig
from model.layers import Linear
from pretrain.checks import FP8_MULTIPLE

pytest.importorskip("torchao")

D_IN, D_OUT, TOKENS = 48, 32, 21  # widths of multiples of 16; the number of tokens is none
SHAPE = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 32, "d_ff": 48}
SHAPE |= {"vocab_size": 112, "tie_embeddings": False}  # the head would fit
HALF_BIT = 2**-8  # of bf16, in which products come out


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is left of a tensor in 8 bits, scaled so that its largest number is the format's."""
    scale = torch.finfo(dtype).max / x.double().abs().max()
    return (x.float() * scale.float()).to(dtype).double() / scale


def e4m3(x: torch.Tensor) -> torch.Tensor:
    return rounded(x, torch.float8_e4m3fn)


def e5m2(x: torch.Tensor) -> torch.Tensor:
    return rounded(x, torch.float8_e5m2)


def linear(*, bias: bool) -> Linear:
    config = preset("llama-tiny", **SHAPE)
    found = Linear(config, D_IN, D_OUT, bias=bias, role="hidden", row_splits=(D_OUT,))
    return found.bfloat16()


def assert_close(found: torch.Tensor | None, exact: torch.Tensor) -> None:
    assert found is not None
    assert found.dtype == torch.bfloat16
    largest = float(exact.abs().max())
    torch.testing.assert_close(found.double(), exact, rtol=HALF_BIT, atol=1e-6 * largest)


@pytest.mark.parametrize("bias", [False, True])
def test_one_map_and_its_gradients(bias: bool) -> None:
    module = linear(bias=bias)
    if bias:
        torch.nn.init.normal_(module.bias, std=3)
    x = torch.randn(3, TOKENS // 3, D_IN, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(3, TOKENS // 3, D_OUT, dtype=torch.bfloat16) / 1000
    float8.use_in(module, emulate=True)
    y = module(x)
    y.backward(gradient)

    weight, given, back = module.weight.detach(), x.detach(), gradient.flatten(0, 1)
    product = e4m3(given) @ e4m3(weight).T
    if bias:  # rounded before and after
        wanted = product.bfloat16().double() + module.bias.detach().double()
        assert_close(module.bias.grad, back.double().sum(0))
    else:
        wanted = product
    assert_close(y.detach(), wanted)
    of_input = e5m2(back) @ e4m3(weight)
    of_weight = e5m2(back).T @ e4m3(given.flatten(0, 1))
    assert_close(x.grad, of_input.view_as(x))
    assert_close(module.weight.grad, of_weight)
    # Other formats, and none, are told apart.
    for wrong in (e4m3(back) @ e4m3(weight), back.double() @ weight.double()):
        with pytest.raises(AssertionError):
            assert_close(x.grad, wrong.view_as(x))
    for wrong in (given.double() @ weight.double().T, e5m2(given) @ e4m3(weight).T):
        with pytest.raises(AssertionError):
            assert_close(y.detach(), wrong + (module.bias.detach().double() if bias else 0))


@pytest.mark.parametrize("name", ["llama-tiny", "gpt2-tiny", "bert-tiny"])
def test_maps_of_blocks_alone_and_none_of_the_tree(name: str) -> None:
    of_llama = () if name == "llama-tiny" else ("n_kv_heads", "tie_embeddings")
    net = build(preset(name, **{k: v for k, v in SHAPE.items() if k not in of_llama}))
    names, modules = list(net.state_dict()), [n for n, _ in net.named_modules()]
    parameters = list(net.parameters())
    float8.use_in(net, emulate=True)
    assert list(net.state_dict()) == names
    assert [n for n, _ in net.named_modules()] == modules
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    linears = {n: m for n, m in net.named_modules() if isinstance(m, Linear)}
    assert sum(m.float8 is not None for m in linears.values()) == 4 * 2  # 4 in each block
    for where, module in linears.items():
        assert (module.float8 is not None) == where.startswith("trunk.blocks."), where
    assert str(float8.maps_of(net)) == "all 8 linear maps of the blocks in FP8"


def test_out_of_training_it_is_bf16_bit_for_bit() -> None:
    net = build(preset("llama-tiny", **SHAPE)).bfloat16()
    ids = torch.randint(0, 112, (2, 16))
    plain, plain_in_training = net.eval()(ids).logits, net.train()(ids).logits
    float8.use_in(net, emulate=True)
    assert torch.equal(net.eval()(ids).logits, plain)
    assert not torch.equal(net.train()(ids).logits, plain_in_training)


def test_maps_that_do_not_fit_stay() -> None:
    net = build(preset("llama-tiny", **SHAPE | {"d_ff": 40}))
    float8.use_in(net, emulate=True)
    mlp = net.trunk.blocks[0].mlp
    assert mlp.gate_up.float8 is not None  # 80 rows
    assert mlp.down.float8 is None
    told = "6 of 8 linear maps of the blocks in FP8; 2 in bf16, because a width of theirs is no mul"
    assert told in str(float8.maps_of(net))
    assert float8.MULTIPLE == FP8_MULTIPLE
    config = ModelConfig(**SHAPE | {"family": "llama", "max_seq_len": 32})
    assert float8.maps_of(build(config)).in_float8 == 0, "nobody asked for it"


def test_where_torchao_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ImportError, match=r"needs torchao, which .*pip install 'ingot\[fp8\]', or"):
        float8.use_in(linear(bias=False), emulate=True)
