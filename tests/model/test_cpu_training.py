"""What is computed in another way where a CPU trains: the same numbers, and only there."""

import pytest
import torch
import torch.nn.functional as F

from model import dot_product, preset
from model.layers import ACTIVATIONS, RMSNorm
from model.rotary import Rotary, rotary_table, rotate
from tests.model.shapes import relative_error
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


@pytest.mark.parametrize("is_compiled", [False, True])
def test_rotation_and_its_gradient_are_those_of_complex_numbers(is_compiled):
    turn = rotate
    if is_compiled:
        turn = torch.compile(rotate, fullgraph=True, backend="aot_eager")
    config = preset("llama-tiny")
    table = rotary_table(torch.arange(9)[None], config)
    half = config.head_dim // 2
    x, onto = draw(2, 9, 3, 2 * half).requires_grad_(), draw(2, 9, 3, 2 * half, seed=1)
    angle = torch.complex(table.cos[..., :half], table.sin[..., half:])

    def turned(x):
        y = torch.complex(*x.chunk(2, -1)) * angle
        return torch.cat((y.real, y.imag), -1)

    for found, want in zip(
        (turn(x, table), *torch.autograd.grad(turn(x, table), x, onto)),
        (turned(x), *torch.autograd.grad(turned(x), x, onto)),
        strict=True,
    ):
        assert relative_error(found, want) <= 1e-6
    with torch.no_grad():
        assert relative_error(turn(x, Rotary(*table)), turned(x)) <= 1e-6


def attended(q, k, v, onto, dtype, **options):
    inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    y = dot_product.attend(*inputs, dropout=0.0, **options)
    return [y, *torch.autograd.grad(y, inputs, onto.to(dtype))]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("sees", ["left", "all", "some", "no padding"])
@pytest.mark.parametrize(("loudness", "most"), [(1, 8e-3), (4, 2e-2)])
def test_gradients_of_short_attention_are_those_of_fp64(kv_heads, sees, loudness, most):
    q, onto = (draw(2, 4, 48, 24, seed=n).bfloat16() for n in (0, 1))
    k, v = (draw(2, kv_heads, 48, 24, seed=n).bfloat16() for n in (2, 3))
    mask = (draw(2, 1, 48, 48) > 0) | torch.eye(48, dtype=torch.bool)
    masks = {"some": mask, "no padding": mask[:, :, :1]}
    options = {"mask": masks.get(sees), "causal": sees == "left"}
    q = q * loudness
    found = attended(q, k, v, onto, torch.bfloat16, **options)
    assert found[0].grad_fn.name() == "_ShortBackward"
    want = attended(q.double(), k.double(), v.double(), onto, torch.float64, **options)
    for ours, theirs in zip(found, want, strict=True):
        assert ours.dtype == torch.bfloat16
        assert relative_error(ours, theirs) <= most


@pytest.mark.parametrize(
    ("dtype", "length", "seen", "dropout", "is_short"),
    [
        (torch.bfloat16, 256, 256, 0.0, True),
        (torch.bfloat16, 257, 257, 0.0, False),
        (torch.bfloat16, 8, 9, 0.0, False),  # after a prompt
        (torch.bfloat16, 8, 8, 0.1, False),
        (torch.float32, 8, 8, 0.0, False),
    ],
)
def test_where_attention_has_a_gradient_of_its_own(dtype, length, seen, dropout, is_short):
    q, kv = torch.zeros(1, 2, length, 8, dtype=dtype), torch.zeros(1, 2, seen, 8, dtype=dtype)
    q.requires_grad_()
    options = {"mask": None, "causal": length == seen, "dropout": dropout}
    y = dot_product.attend(q, kv, kv, **options)
    assert (y.grad_fn.name() == "_ShortBackward") == is_short
    with torch.no_grad():
        assert dot_product.attend(q, kv, kv, **options).grad_fn is None


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_attention_keeps_q_k_and_v_once(is_compiled, rows):
    """And nothing of the packed tensor that they were cut from, though values are views of it."""
    x, weight = (draw(*shape).bfloat16() for shape in ((rows, 24, 8), (12 * 16, 8)))
    packed = 2 * rows * 24 * 12 * 16  # bytes

    def project_and_attend(x, weight):
        q, k, v = F.linear(x, weight).view(rows, 24, 12, 16).transpose(1, 2).split(4, 1)
        return dot_product.attend(q + 1, k + 1, v, mask=None, causal=True, dropout=0.0)

    attend, kept = project_and_attend, {}
    if is_compiled:
        attend = torch.compile(attend, backend="aot_eager_decomp_partition")

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(x, weight.requires_grad_())
    # Of a compiled function the hooks don't see those that it keeps as views.
    assert packed // 3 <= sum(kept.values()) <= 2 * x.numel() + packed


def test_attention_compiles_into_one_graph():
    q, k, v, onto = (draw(2, 4, 24, 16, seed=n).bfloat16() for n in range(4))
    eager = attended(q, k, v, onto, torch.bfloat16, mask=None, causal=True)
    attend, dot_product.attend = (
        dot_product.attend,
        torch.compile(dot_product.attend, fullgraph=True, backend="aot_eager"),
    )
    try:
        compiled = attended(q, k, v, onto, torch.bfloat16, mask=None, causal=True)
    finally:
        dot_product.attend = attend
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def test_compiled_gelu_is_torchs():
    activation = ACTIVATIONS["gelu_tanh"]
    compiled = torch.compile(activation, fullgraph=True, backend="aot_eager")
    x = torch.linspace(-30, 30, 1001, dtype=torch.float64).requires_grad_()
    found, want = compiled(x), F.gelu(x, approximate="tanh")
    assert "Gelu" not in found.grad_fn.name()
    assert relative_error(found, want) <= 1e-14
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (found, want)]
    assert relative_error(*gradients) <= 1e-14


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
