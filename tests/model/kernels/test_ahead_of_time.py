"""What every kernel compiles to for sm_80 and sm_90, without a GPU."""

import importlib.util

import pytest
import torch

from model.rotary import Rotary

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CAPABILITIES = (80, 90)
ROWS = 32


@pytest.fixture(autouse=True)
def _believed(monkeypatch):
    """CPU tensors stand in for a card's."""
    from model.kernels import cross_entropy_rows_triton, norm, rotary

    for module in (cross_entropy_rows_triton, norm, rotary):
        monkeypatch.setattr(module, "check_device", lambda x: None)


def compiled(do, capability):
    from tests.model.kernels.ahead_of_time import launches

    found = launches(do, capability)
    assert [kernel.name for kernel in found] == ["_forward_kernel", "_backward_kernel"]
    return found


def assert_fits(kernel, registers):
    """Nothing spilled, as many programs at once as planned, and rows read 16 bytes at a time."""
    told = (kernel.name, kernel.warps, kernel.registers, kernel.spilled)
    assert kernel.spilled == 0, told
    assert kernel.registers <= registers, told
    for access in ("ld", "st"):
        widths = kernel.widths(access)
        narrow = [width for width in widths if width < 16]
        # Statistics of a row, and sums over the heads of a program, are one number a thread.
        assert len(narrow) <= 4, (told, access, widths)
        assert widths.count(16) >= 2, (told, access, widths)
        assert set(narrow) <= {4}, (told, access, widths)


# Widths up to which a program's registers leave room for so many programs as `launching` plans:
# 65,536 of a processor for 8,192 elements, 32 or 16 warps.
@pytest.mark.parametrize(("width", "registers"), [(768, 64), (4096, 64), (8192, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms(width, registers, dtype, capability, kind):
    from model.kernels.norm import norm

    is_centred = kind == "layer"
    weight = torch.zeros(width, dtype=DTYPES[dtype], requires_grad=True)

    def step():
        x = torch.zeros(ROWS, width, dtype=DTYPES[dtype])
        outputs = norm(x, x, weight, weight if is_centred else None, 1e-5, is_centred)
        torch.autograd.backward(outputs, [torch.zeros_like(x)] * 2)

    for kernel in compiled(step, capability):
        assert_fits(kernel, registers)


@pytest.mark.parametrize("heads", [(12, 12, 64), (32, 8, 128), (16, 8, 80)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("has_norm", [False, True])
def test_rotary(heads, dtype, capability, has_norm):
    from model.kernels.rotary import split_and_turn

    n_heads, n_kv_heads, width = heads
    gain = torch.zeros(width, dtype=DTYPES[dtype], requires_grad=True)
    angle = torch.zeros(1, ROWS, 1, width // 2)

    def step():
        shape = (2, ROWS, n_heads + 2 * n_kv_heads, width)
        packed = torch.zeros(shape, dtype=DTYPES[dtype], requires_grad=True)
        gains = (gain, gain) if has_norm else ()
        outputs = split_and_turn(packed, Rotary.of(angle, angle), n_heads, n_kv_heads, gains, 1e-6)
        torch.autograd.backward(outputs, [torch.zeros_like(t) for t in outputs])

    forward, backward = compiled(step, capability)
    assert_fits(forward, 64)
    assert_fits(backward, 144 if has_norm else 64)  # with a norm it sums over tokens in registers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("options", [(None, 0.0, 0.0), (30.0, 0.1, 1e-4)], ids=["plain", "all"])
def test_cross_entropy_rows(dtype, capability, options):
    from model.kernels.cross_entropy_rows import RowLoss
    from model.kernels.cross_entropy_rows_triton import rows_
    from tests.model.kernels.ahead_of_time import launches

    logits = torch.zeros(ROWS, 50_304, dtype=DTYPES[dtype])
    targets, share = torch.zeros(ROWS, dtype=torch.int64), torch.ones(ROWS)
    (kernel,) = launches(
        lambda: rows_(logits, targets, share, RowLoss(50_257, *options), with_gradient=True),
        capability,
    )
    told = (kernel.warps, kernel.registers, kernel.spilled, kernel.widths("ld"))
    assert kernel.spilled == 0, told
    assert kernel.registers <= 128, told  # two programs of 8 warps on a processor
    # Of a row: its target, share, the target's logit and the loss. All others are the logits.
    assert sum(width < 16 for width in kernel.widths("ld")) == 3, told
    assert sum(width < 16 for width in kernel.widths("st")) <= 2, kernel.widths("st")
