"""The chunked loss on a GPU in 16 bit, with the vocabulary of GPT-2 and what computes its rows."""

import contextlib

import pytest
import torch

from model import chunks
from model.kernels.linear_cross_entropy import loss, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DEVICE = "cuda"
CLASSES, ROWS_IN_MEMORY, WIDTH = 50_257, 50_304, 256
N, CHUNK_ROWS = 1003, 300  # four chunks of 251 rows but for the last, which has 250
SCALE = 1024  # of the loss, as a run in fp16 has it
OPTIONS = [
    {},
    {"softcap": 5.0},
    {"label_smoothing": 0.1, "z_loss": 1e-2},
    {"softcap": 3.0, "label_smoothing": 0.2, "z_loss": 0.1},
]
BOUND = {torch.bfloat16: 1e-2, torch.float16: 2e-3}  # a few roundings of 8 and of 11 bits


@pytest.fixture(params=["torch", "inductor", "triton"])
def kernels(request):
    """What computes rows: PyTorch, what its compiler makes of it, our kernel."""
    if request.param != "torch":
        pytest.importorskip("triton")
    return request.param


def case(dtype, has_bias):
    """Numbers that `dtype` holds, and every seventh row ignored."""
    torch.manual_seed(0)
    shapes = [(N, WIDTH), (ROWS_IN_MEMORY, WIDTH), (ROWS_IN_MEMORY,)][: 2 + has_bias]
    inputs = [torch.randn(shape).to(DEVICE, dtype) for shape in shapes]
    inputs[1] /= WIDTH**0.5 / 2  # logits of a spread of about two
    targets = torch.randint(0, CLASSES, (N,), device=DEVICE)
    targets[::7] = -100
    return [x.requires_grad_() for x in inputs], targets


def computed(function, inputs, targets, **options):
    """Loss, and the gradients of SCALE times the loss."""
    hidden, weight, *bias = inputs
    options["bias"] = bias[0] if bias else None
    found = function(hidden, weight, targets, vocab_size=CLASSES, **options)
    return [found.detach(), *torch.autograd.grad(SCALE * found, inputs)]


def ours(kernels, chunk_rows=CHUNK_ROWS, **more):
    """The chunked loss by itself."""

    def function(*arguments, **options):
        return loss(*arguments, chunk_rows=chunk_rows, kernels=kernels, **more, **options).loss

    return function


@contextlib.contextmanager
def without_waiting():
    """Whatever makes the host wait for the GPU raises an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def distance(found, want):
    return float((found.float() - want).norm() / want.norm())


def test_there_are_several_chunks():
    assert chunks.equal(N, CHUNK_ROWS) == 251
    assert N > 3 * 251


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", BOUND)
def test_16_bit_against_fp32(dtype, has_bias, options, kernels):
    """Of the reference on the same numbers; no further from it than the reference in 16 bit."""
    inputs, targets = case(dtype, has_bias)
    found = computed(ours(kernels), inputs, targets, **options)
    plain = computed(reference, inputs, targets, **options)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    want = computed(reference, wide, targets, **options)
    assert found[0].dtype == torch.float32
    for number, (a, b, c) in enumerate(zip(found, want, plain, strict=True)):
        error, of_plain = distance(a, b), distance(c, b)
        assert a.isfinite().all(), number
        assert error <= BOUND[dtype], (number, error)
        assert error <= 1.2 * of_plain + 1e-4, (number, error, of_plain)
    assert not found[1][::7].any(), "ignored rows have gradients"
    assert not found[2][CLASSES:].any(), "rows that only fill up the matrix were trained"


@pytest.mark.parametrize("options", [{}, OPTIONS[-1]], ids=str)
def test_fp32(options, kernels):
    """And whether the number of chunks changes anything but rounding."""
    inputs, targets = case(torch.float32, True)
    want = computed(reference, inputs, targets, **options)
    for chunk_rows in (CHUNK_ROWS, None):
        found = computed(ours(kernels, chunk_rows), inputs, targets, **options)
        assert max(distance(a, b) for a, b in zip(found, want, strict=True)) <= 1e-5


@pytest.mark.parametrize("dtype", BOUND)
def test_the_host_never_waits(dtype, kernels):
    """After the first pass, which compiles: a number that the host reads raises an error."""
    inputs, targets = case(dtype, True)
    function = ours(kernels, counts_correct=True)
    want = computed(function, inputs, targets, **OPTIONS[-1])
    torch.cuda.synchronize()
    with without_waiting():
        found = computed(function, inputs, targets, **OPTIONS[-1])
    assert all(distance(a, b.float()) <= 1e-3 for a, b in zip(found, want, strict=True))
    with without_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        found[0].item()  # as would have been seen
