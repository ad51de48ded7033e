"""The chunked head against plain PyTorch in fp64."""

import functools
import itertools

import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from model import chunks
from model.kernels import cross_entropy_rows, linear_cross_entropy
from model.kernels.cross_entropy_rows import RowLoss, in_few_passes_
from model.kernels.linear_cross_entropy import loss, reference

CLASSES, ROWS_IN_MEMORY, WIDTH, N = 50, 56, 12, 37
OPTIONS = [
    {},
    {"softcap": 5.0},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-2},
    {"softcap": 3.0, "label_smoothing": 0.2, "z_loss": 0.1},
]
CHUNKS = [None, 1, 7, N, 1000]


@pytest.fixture(params=["torch", "inductor"])
def kernels(request, monkeypatch):
    """What computes rows; what a compiler is given, without compiling it."""
    monkeypatch.setattr(linear_cross_entropy, "_compiled_rows", lambda: in_few_passes_)
    return request.param


def case(dtype=torch.float64, seed=0, n=N):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((n, WIDTH), (ROWS_IN_MEMORY, WIDTH), (ROWS_IN_MEMORY,))
    )
    targets = torch.randint(0, CLASSES, (n,), generator=generator)
    targets[::5] = -100
    return hidden, weight, bias, targets


def both(inputs, targets, *, scale=3, chunk_rows=None, kernels="torch", **options):
    """Loss and gradients (of `scale` times the loss) of ours, and of the reference in fp64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    results, ours = [], {"chunk_rows": chunk_rows, "kernels": kernels}
    for (hidden, weight, bias), compute in (
        (inputs, lambda *a, **more: loss(*a, **more, **ours).loss),
        (exact, reference),
    ):
        found = compute(hidden, weight, targets, bias=bias, vocab_size=CLASSES, **options)
        grads = torch.autograd.grad(scale * found, (hidden, weight, bias))
        results.append((found.detach(), *grads))
    return results


def error(got, want):
    want = want.double()
    return float((got.double() - want).norm() / want.norm().clamp(min=1e-30))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk_rows", CHUNKS)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_equals_the_reference(options, chunk_rows, dtype, most, kernels):
    *inputs, targets = case(dtype)
    ours, plain = both(inputs, targets, chunk_rows=chunk_rows, kernels=kernels, **options)
    assert [x.dtype for x in ours[1:]] == [dtype] * 3
    assert max(map(error, ours, plain)) <= most
    assert not ours[2][CLASSES:].any(), "rows that only fill up the matrix were trained"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk_rows", [None, 7])
def test_bf16_is_no_worse_than_plain_bf16(options, chunk_rows, kernels):
    # A scale that is a power of two, as in a run of equal micro-batches, is not rounded again.
    *inputs, targets = case(torch.bfloat16, n=301)
    how = {"chunk_rows": chunk_rows, "kernels": kernels}
    ours, exact = both(inputs, targets, scale=4, **how, **options)
    hidden, weight, bias = inputs
    plain = reference(hidden, weight, targets, bias=bias, vocab_size=CLASSES, **options)
    plain = (plain.detach(), *torch.autograd.grad(4 * plain, inputs))
    assert ours[0].dtype == torch.float32
    for got, other, want in zip(ours, plain, exact, strict=True):
        assert error(got, want) <= 1.2 * error(other, want) + 1e-4


def test_gradients_survive_in_fp16():
    """Under a loss scale of 65,536, as much as where the mean's gradient is scaled first."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(shape, generator=generator).half().requires_grad_()
        for shape in ((4096, 8), (CLASSES, 8))
    )
    targets = torch.randint(0, CLASSES, (4096,), generator=generator)
    grads = torch.autograd.grad(65_536 * loss(hidden, weight, targets).loss, (hidden, weight))
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    wanted = torch.autograd.grad(65_536 * reference(*wide, targets), wide)
    assert max(map(error, grads, wanted)) <= 1e-3


def test_the_gradient_of_the_matrix_is_summed_in_fp32():
    """In bf16 a sum of 1,000 chunks stops growing where a chunk's part is half a unit of it."""
    hidden = torch.ones(1000, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    found = loss(hidden, weight, torch.zeros(1000, dtype=torch.int64), chunk_rows=1).loss
    (grad,) = torch.autograd.grad(found, weight)
    assert grad[:, 0].tolist() == pytest.approx([-0.5, 0.5], rel=2e-3)


def test_large_logits_neither_overflow_nor_vanish(kernels):
    hidden = torch.tensor([[1e4], [-1e4], [1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    targets = torch.tensor([0, 0, 2])
    found = loss(hidden, weight, targets, chunk_rows=2, kernels=kernels).loss
    assert float(found.detach()) == pytest.approx((0 + 2e4 + 1e4) / 3)
    assert all(x.isfinite().all() for x in torch.autograd.grad(found, (hidden, weight)))


@pytest.mark.parametrize("rows_", [cross_entropy_rows.rows_, in_few_passes_])
def test_small_differences_of_large_logits_count(rows_):
    scores = 1000 + torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(0))
    targets, found = torch.arange(7), []
    for dtype in (torch.float32, torch.float64):
        gradient = scores.to(dtype, copy=True)
        how = RowLoss(CLASSES, None, 0.1, 0.0)
        losses = rows_(gradient, targets, torch.ones(7, dtype=dtype), how, with_gradient=True)
        found.append((losses, gradient))
    assert max(map(error, *found)) <= 1e-6


@pytest.mark.parametrize("n", [0, 1, 6])
def test_nothing_to_predict_is_zero(n, kernels):
    *inputs, targets = case(torch.float32, n=n)
    ours, _ = both(inputs, torch.full_like(targets, -100), kernels=kernels)
    assert [float(x.abs().sum()) for x in ours] == [0.0] * 4


def test_ignored_rows_may_hold_anything(kernels):
    *inputs, targets = case()
    weight = inputs[1].detach()
    clean, spoilt = (inputs[0].detach().clone() for _ in range(2))
    spoilt[targets == -100] = torch.nan
    found = []
    for hidden in (clean.requires_grad_(), spoilt.requires_grad_()):
        out = loss(hidden, weight, targets, vocab_size=CLASSES, kernels=kernels).loss
        found.append((out.detach(), *torch.autograd.grad(out, hidden)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options):
    hidden, weight, bias, targets = case(n=5)

    def compute(*inputs):
        hidden, weight, bias = inputs
        return loss(
            hidden, weight, targets, bias=bias, vocab_size=CLASSES, chunk_rows=2, **options
        ).loss

    assert torch.autograd.gradcheck(compute, (hidden, weight, bias))


def test_opcheck():
    hidden, weight, bias, targets = case(torch.float32)
    arguments = (hidden, weight, targets, bias, CLASSES, 5.0, 0.1, 0.01, -100, 7, [True] * 3, True)
    operation = torch.ops.ingot.linear_cross_entropy.default
    torch.library.opcheck(operation, (*arguments, "torch"))


def test_a_gradient_can_be_asked_for_again():
    *inputs, targets = case()
    found = loss(inputs[0], inputs[1], targets, vocab_size=CLASSES, chunk_rows=7).loss
    first = torch.autograd.grad(found, inputs[:2], retain_graph=True)
    again = torch.autograd.grad(2 * found, inputs[:2])
    assert all(torch.equal(2 * a, b) for a, b in zip(first, again, strict=True))


def test_a_frozen_matrix_costs_no_gradient():
    hidden, weight, _, targets = case()
    found = loss(hidden, weight.detach(), targets, vocab_size=CLASSES).loss
    _, matrix, *_ = found.grad_fn.saved_tensors
    assert matrix.numel() == 0
    (got,) = torch.autograd.grad(found, hidden)
    wanted = reference(hidden, weight, targets, vocab_size=CLASSES)
    assert error(got, torch.autograd.grad(wanted, hidden)[0]) <= 1e-13


def test_counts_the_rows_that_are_right():
    hidden, weight, bias, targets = case()
    scores = (hidden @ weight.T + bias)[:, :CLASSES]
    with torch.no_grad():
        found = loss(
            hidden,
            weight,
            targets,
            bias=bias,
            vocab_size=CLASSES,
            chunk_rows=7,
            counts_correct=True,
        )
    assert int(found.n_correct) == int((scores.argmax(-1) == targets).sum())
    right = scores.argmax(-1)
    assert int(loss(hidden, weight, right, bias=bias, counts_correct=True).n_correct) <= N
    assert loss(hidden, weight, targets).n_correct is None


def test_autocast_computes_the_product_in_16_bit():
    hidden, weight, _, targets = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(hidden, weight, targets, vocab_size=CLASSES).loss
    grads = torch.autograd.grad(found, (hidden, weight))
    assert [g.dtype for g in grads] == [torch.float32] * 2
    low = loss(hidden.bfloat16(), weight.bfloat16(), targets, vocab_size=CLASSES).loss
    assert torch.equal(found, low)


def test_compiles_into_one_graph():
    hidden, weight, _, targets = case(torch.float32)

    def compute(hidden, weight, targets):
        return loss(hidden, weight, targets, vocab_size=CLASSES, chunk_rows=7).loss

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    ours = [
        (found, *torch.autograd.grad(found, (hidden, weight)))
        for found in (f(hidden, weight, targets) for f in (compute, compiled))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*ours, strict=True))


def through_the_body_without_numbers(monkeypatch, dtype, kernels):
    """Forward and backward of tensors that hold nothing: whoever asks for a number fails."""
    body = linear_cross_entropy._forward
    monkeypatch.setattr(body, "_abstract_fn", body._init_fn)  # not the shapes that stand for it
    options = {**OPTIONS[-1], "vocab_size": CLASSES, "chunk_rows": 7, "counts_correct": True}
    with FakeTensorMode():
        shapes = ((N, WIDTH), (ROWS_IN_MEMORY, WIDTH), (ROWS_IN_MEMORY,))
        inputs = [torch.empty(shape, dtype=dtype, requires_grad=True) for shape in shapes]
        targets = torch.empty(N, dtype=torch.int64)
        found = loss(*inputs[:2], targets, bias=inputs[2], kernels=kernels, **options)
        return torch.autograd.grad(3 * found.loss, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_host_waits_for_no_number(dtype, kernels, monkeypatch):
    """On a GPU each one would hold the host up until all that was asked for is done."""
    grads = through_the_body_without_numbers(monkeypatch, dtype, kernels)
    assert [grad.dtype for grad in grads] == [dtype] * 3
    shares = linear_cross_entropy._shares

    def shares_that_look(is_kept, hidden):
        return shares(is_kept, hidden) if is_kept.any() else None

    monkeypatch.setattr(linear_cross_entropy, "_shares", shares_that_look)
    with pytest.raises(DataDependentOutputException):
        through_the_body_without_numbers(monkeypatch, dtype, kernels)


@pytest.mark.slow  # half a minute of compiling
def test_the_compiler_makes_kernels_of_rows(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for options in ({}, OPTIONS[-1]):
        *inputs, targets = case(torch.float32)
        ours, plain = both(inputs, targets, chunk_rows=20, kernels="inductor", **options)
        assert max(map(error, ours, plain)) <= 2e-6
        assert not ours[2][CLASSES:].any()


def test_one_compilation_serves_all_numbers_of_rows(monkeypatch):
    """Rows that are predicted differ from batch to batch, and last chunks from others."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compile_(f, backend="aot_eager"))
    fresh = functools.cache(linear_cross_entropy._compiled_rows.__wrapped__)
    monkeypatch.setattr(linear_cross_entropy, "_compiled_rows", fresh)
    torch._dynamo.reset()
    counters.clear()
    for number, n in enumerate((37, 30, 52, 1)):
        if n == 1:
            counters.clear()  # a size of its own to the compiler
        *inputs, targets = case(torch.float32, n=n)
        targets[0] = 3
        ours, plain = both(inputs, targets, chunk_rows=20, kernels="inductor")
        assert max(map(error, ours, plain)) <= 2e-6
        assert counters["stats"]["unique_graphs"] == 1, number
    torch._dynamo.reset()


def peak_bytes(compute):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        compute()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    steps = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(steps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_pass_makes_the_gradients_and_a_block_besides(dtype):
    """Forward in fp32, backward in the dtype of what they belong to."""
    hidden = torch.randn(8, 512, dtype=dtype, requires_grad=True)
    weight = torch.randn(16_384, 512, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 16_384, (8,))
    block = 4 * chunks.COPY_ELEMENTS
    found = []
    forward = peak_bytes(lambda: found.append(loss(hidden, weight, targets).loss))
    assert forward <= 1.1 * (4 * weight.numel() + block)
    backward = peak_bytes(lambda: torch.autograd.grad(found[0], (hidden, weight)))
    assert backward <= 1.05 * (weight.nbytes + block * (dtype != torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_that_lie_in_memory_by_columns(dtype):
    """And that are cut into several blocks."""
    hidden, weight = (torch.randn(64, n).to(dtype) for n in (40, 20_000))
    targets = torch.randint(0, 20_000, (40,))

    def gradients(*inputs):
        inputs = [x.requires_grad_() for x in inputs]
        return torch.autograd.grad(loss(*inputs, targets).loss * 3, inputs)

    found = gradients(hidden.t(), weight.t())
    plain = gradients(hidden.t().contiguous(), weight.t().contiguous())
    most = 2e-6 if dtype == torch.float32 else 1e-2
    assert max(map(error, found, plain)) <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quarter_of_the_memory_of_the_plain_head(dtype):
    hidden = torch.randn(3072, 16).to(dtype).requires_grad_()
    weight = torch.randn(50_304, 16).to(dtype).requires_grad_()
    targets = torch.randint(0, 50_257, (3072,))

    def step(function):
        return lambda: torch.autograd.grad(
            function(hidden, weight, targets, vocab_size=50_257), (hidden, weight)
        )

    ours = peak_bytes(step(lambda *a, **k: loss(*a, **k).loss))
    assert ours <= peak_bytes(step(reference)) / 4
