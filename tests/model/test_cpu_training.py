"""What is computed in another way where a CPU trains: the same numbers, and only there."""

import pytest
import torch
import torch.nn.functional as F

from model import build, preset
from model.attention import KVCache
from model.layers import RMSNorm
from model.rotary import Rotary, rotary_table, rotate
from tests.model.shapes import relative_error, token_ids
from tests.processes import run

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 5, 48), (2, 7, 4, 14)])
def test_norm_and_its_gradients_are_torchs(shape, dtype):
    norm = RMSNorm(shape[-1], 1e-2)
    with torch.no_grad():
        norm.weight.copy_(draw(shape[-1], seed=1))
    norm.to(dtype)
    x, onto = draw(*shape).to(dtype), draw(*shape, seed=2).to(dtype)
    found, want = [], []
    for into, module, kind in ((found, norm, dtype), (want, None, torch.float64)):
        inputs = x.to(kind).requires_grad_()
        weight = norm.weight if module else norm.weight.detach().double().requires_grad_()
        y = norm(inputs) if module else F.rms_norm(inputs, weight.shape, weight, 1e-2)
        into += [y, *torch.autograd.grad(y, (inputs, weight), onto.to(kind))]
    for ours, theirs in zip(found, want, strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, theirs) <= TOLERANCE[dtype]
    with torch.no_grad():
        assert relative_error(norm(x), want[0]) <= TOLERANCE[dtype]


def test_rotation_and_its_gradient_are_those_of_complex_numbers():
    config = preset("llama-tiny")
    table = rotary_table(torch.arange(9)[None], config)
    half = config.head_dim // 2
    x, onto = draw(2, 9, 3, 2 * half).requires_grad_(), draw(2, 9, 3, 2 * half, seed=1)
    angle = torch.complex(table.cos[..., :half], table.sin[..., half:])

    def turned(x):
        y = torch.complex(*x.chunk(2, -1)) * angle
        return torch.cat((y.real, y.imag), -1)

    for found, want in zip(
        (rotate(x, table), *torch.autograd.grad(rotate(x, table), x, onto)),
        (turned(x), *torch.autograd.grad(turned(x), x, onto)),
        strict=True,
    ):
        assert relative_error(found, want) <= 1e-6
    with torch.no_grad():
        assert relative_error(rotate(x, Rotary(*table)), turned(x)) <= 1e-6


def test_short_texts_are_attended_to_in_fp32_where_gradients_are_wanted(monkeypatch):
    kinds = []

    def attention(q, k, v, **options):
        kinds.append(q.dtype)
        return plain(q, k, v, **options)

    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    net = build(preset("llama-tiny", n_layers=1, max_seq_len=512)).bfloat16()
    ids = token_ids(net.config, 1, 300)
    for inputs in (ids[:, :256], ids[:, :257]):
        assert net(inputs).logits.dtype == torch.bfloat16
    with torch.no_grad():
        net(ids[:, :256])
    net(ids[:, :9], cache=KVCache(net.config, 1, 16, ids.device, torch.bfloat16))
    assert kinds == [torch.float32, *[torch.bfloat16] * 3]


def test_names_of_parameters_are_listed_without_the_compiler():
    """Torch would draw weights that are nowhere with operations that load it, for a second."""
    script = (
        "import sys; from model import preset; from model.hf.state import slots;"
        " slots(preset('llama-tiny'), 'causal_lm');"
        " print('torch._dynamo' in sys.modules)"
    )
    status, output = run(["-c", script])
    assert status == 0, output
    assert output.split()[-1] == "False"
