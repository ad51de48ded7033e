"""The Triton kernel of the loss against PyTorch's, which has its own tests."""

import pytest
import torch

from model.kernels import cross_entropy_rows, cross_entropy_rows_triton
from model.kernels.cross_entropy_rows import RowLoss
from model.kernels.linear_cross_entropy import loss, reference
from tests.model.kernels.interpreted.closeness import assert_close, outputs_and_gradients

OPTIONS = [(None, 0.0, 0.0), (5.0, 0.0, 0.0), (None, 0.1, 0.0), (3.0, 0.1, 0.01)]
# Classes, and columns in memory: less than a block, several blocks, no multiple of anything.
SIZES = [(50, 56), (5000, 5056), (9001, 9001)]
BOUND = {torch.float32: 1e-5, torch.float64: 1e-13}


def case(classes, columns, dtype=torch.float32, scale=4.0):
    """Rows inside of wider ones, which hold NaN where no class is; one row is ignored."""
    whole = torch.full((6, columns + 3), float("nan"), dtype=dtype)
    whole[:, 2 : classes + 2] = scale * torch.randn(6, classes)
    targets = torch.randint(0, classes, (6,))
    targets[2] = -100
    share = torch.tensor([0.2, 1.7, 0.0, 0.2, 0.2, 1.0], dtype=dtype)
    return whole[:, 2 : columns + 2], targets, share


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", BOUND)
def test_losses_and_gradients(options, sizes, dtype):
    logits, targets, share = case(*sizes, dtype)
    row_loss, found = RowLoss(sizes[0], *options), []
    for module in (cross_entropy_rows_triton, cross_entropy_rows):
        own = logits.clone()
        losses = module.rows_(own, targets, share, row_loss, with_gradient=True)
        found.append((losses, own))
        own = logits.clone()
        alone = module.rows_(own, targets, share, row_loss, with_gradient=False)
        assert torch.equal(alone, losses)
        assert torch.equal(own[:, : sizes[0]], logits[:, : sizes[0]]), "written to without need"
    assert_close(*found, BOUND[dtype])
    assert not found[0][1][:, sizes[0] :].any()
    assert not found[0][1][2].any(), "an ignored row has a gradient"


def test_large_logits():
    logits, targets, share = case(50, 56, scale=1e4)
    row_loss = RowLoss(50, None, 0.0, 0.0)
    losses = cross_entropy_rows_triton.rows_(logits, targets, share, row_loss, with_gradient=True)
    assert losses.isfinite().all()
    assert logits.isfinite().all()


def test_an_ignored_row_may_hold_anything():
    logits, targets, share = case(50, 56)
    logits[2] = float("nan")
    row_loss = RowLoss(50, None, 0.1, 0.0)
    losses = cross_entropy_rows_triton.rows_(logits, targets, share, row_loss, with_gradient=True)
    assert losses[2] == 0
    assert not logits[2].any()


def test_strided_targets_and_such_as_are_no_class():
    logits, _, share = case(50, 56)
    targets = torch.randint(0, 50, (6, 2))[:, 0]
    row_loss, found = RowLoss(50, None, 0.0, 0.0), []
    for module in (cross_entropy_rows_triton, cross_entropy_rows):
        losses = module.rows_(logits.clone(), targets, share, row_loss, with_gradient=True)
        found.append([losses])
    assert_close(*found)
    for wrong in (-1, 50, 60):
        targets = torch.tensor([wrong, 0, 0, 0, 0, 0])
        losses = cross_entropy_rows_triton.rows_(
            logits.clone(), targets, share, row_loss, with_gradient=False
        )
        assert losses.isnan().tolist() == [True] + [False] * 5


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_in_the_head(options):
    names = dict(zip(("softcap", "label_smoothing", "z_loss"), options, strict=True))
    inputs = [torch.randn(11, 8), torch.randn(56, 8), torch.randn(56)]
    targets = torch.randint(0, 50, (11,))
    targets[3] = -100

    def run(function, dtype, **more):
        def compute(hidden, weight, bias):
            out = function(hidden, weight, targets, bias=bias, vocab_size=50, **names, **more)
            return out if isinstance(out, torch.Tensor) else out.loss

        outputs, grads = outputs_and_gradients(compute, inputs, dtype)
        return [*outputs, *grads]

    ours = run(loss, torch.float32, chunk_rows=4, kernels="triton")
    assert_close(ours, run(reference, torch.float64))


def test_gradcheck():
    hidden, weight = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (8, 3))
    )
    targets = torch.tensor([1, 6, -100, 0, 2])

    def compute(hidden, weight):
        options = {"softcap": 3.0, "label_smoothing": 0.1, "z_loss": 0.01, "vocab_size": 7}
        return loss(hidden, weight, targets, chunk_rows=2, kernels="triton", **options).loss

    assert torch.autograd.gradcheck(compute, (hidden, weight))
