"""Residual and norm, against the formula in fp64."""

import pytest
import torch
from torch.library import opcheck

from model.kernels.norm import norm, reference
from tests.model.kernels.interpreted.closeness import (
    assert_close,
    assert_same,
    outputs_and_gradients,
)

EPS = 1e-5
KINDS = [  # centred, bias, residual
    (*kind, has_residual)
    for kind in ((False, False), (True, False), (True, True))
    for has_residual in (False, True)
]
# A program takes 8 rows or fewer. Few rows: each costs the interpreter some milliseconds.
SHAPES = [(1, 3), (2, 3, 40), (17, 100), (9, 257), (2, 1000), (2, 8193)]


def formula(x, residual, weight, bias, eps, is_centred):
    total = x if residual is None else x + residual
    centred = total - total.mean(-1, keepdim=True) if is_centred else total
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    normed = normed if bias is None else normed + bias
    return normed if residual is None else (normed, total)


def draw(shape, has_residual, has_bias, scale=1.0, dtype=torch.float32):
    width = shape[-1]
    return [
        scale * torch.randn(shape, dtype=dtype),
        scale * torch.randn(shape, dtype=dtype) if has_residual else None,
        torch.randn(width, dtype=dtype),
        torch.randn(width, dtype=dtype) if has_bias else None,
    ]


def of_kind(function, is_centred):
    return lambda *tensors: function(*tensors, EPS, is_centred)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("is_centred", "has_bias", "has_residual"), KINDS)
def test_it_is_the_formula(shape, is_centred, has_bias, has_residual):
    inputs = draw(shape, has_residual, has_bias)
    found = outputs_and_gradients(of_kind(norm, is_centred), inputs, torch.float32)
    want = outputs_and_gradients(of_kind(formula, is_centred), inputs, torch.float64)
    plain = outputs_and_gradients(of_kind(reference, is_centred), inputs, torch.float32)
    for ours, theirs, torchs in zip(found, want, plain, strict=True):
        assert_close(ours, theirs)
        assert_close(torchs, theirs)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3, 1e12])
@pytest.mark.parametrize("is_centred", [False, True])
def test_magnitudes(scale, is_centred):
    inputs = draw((5, 200), True, is_centred, scale)
    inputs[0][3], inputs[1][3] = 0.0, 0.0  # a row of zeros
    found = outputs_and_gradients(of_kind(norm, is_centred), inputs, torch.float32)
    want = outputs_and_gradients(of_kind(formula, is_centred), inputs, torch.float64)
    for ours, theirs in zip(found, want, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("is_centred", [False, True])
def test_no_rows(is_centred):
    inputs = draw((0, 24), True, is_centred)
    outputs, gradients = outputs_and_gradients(of_kind(norm, is_centred), inputs, torch.float32)
    assert [t.shape for t in outputs] == [(0, 24), (0, 24)]
    assert not any(gradient.any() for gradient in gradients[2:])


def test_strides_and_offsets():
    """Rows that do not follow one another, that start anywhere, or whose neighbours are apart."""
    wide = torch.randn(4, 5, 50)
    views = [wide[:, 2:4, 3:40], wide[1::2, :, :37], torch.randn(37, 3, 4).permute(1, 2, 0)]
    weight = torch.randn(50)[5:42]
    for x in views:
        residual = torch.randn(x.shape[1], x.shape[0], 37).transpose(0, 1)
        d_normed = torch.randn(37, *x.shape[:-1]).permute(1, 2, 0)
        d_total = torch.randn(37).expand(x.shape)
        gradients = []
        for function, dtype in ((norm, torch.float32), (formula, torch.float64)):
            leaves = [t.to(dtype).detach().requires_grad_() for t in (x, residual, weight)]
            assert leaves[0].stride() == x.stride() or dtype == torch.float64
            outputs = function(*leaves, None, EPS, False)
            onto = (d_normed.to(dtype), d_total.to(dtype))
            gradients.append([*outputs, *torch.autograd.grad(outputs, leaves, onto)])
        assert_close(*gradients)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone(used):
    inputs = draw((10, 33), True, True)

    def loss(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        chosen = function(*leaves, EPS, True)[used].square().sum()
        return torch.autograd.grad(chosen, leaves, allow_unused=True, materialize_grads=True)

    assert_close(loss(norm, torch.float32), loss(formula, torch.float64))


def test_twice_the_same_and_rows_apart():
    """The same bits again; and rows in another order give the same rows in that order."""
    inputs = draw((18, 96), True, True)
    once = outputs_and_gradients(of_kind(norm, True), inputs, torch.float32)
    again = outputs_and_gradients(of_kind(norm, True), inputs, torch.float32)
    assert_same(once, again)
    order = torch.randperm(18)
    moved = norm(inputs[0][order], inputs[1][order], *inputs[2:], EPS, True)
    assert all(torch.equal(a[order], b) for a, b in zip(once[0], moved, strict=True))


@pytest.mark.parametrize(("is_centred", "has_bias", "has_residual"), KINDS)
def test_gradients_are_those_of_the_forward_pass(is_centred, has_bias, has_residual):
    tensors = draw((9, 5), has_residual, has_bias, dtype=torch.float64)
    given = [t is not None for t in tensors]

    def function(*leaves):
        rest = iter(leaves)
        return norm(*(next(rest) if there else None for there in given), EPS, is_centred)

    leaves = [t.requires_grad_() for t in tensors if t is not None]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize(("is_centred", "has_bias", "has_residual"), KINDS)
def test_the_operation_is_well_registered(is_centred, has_bias, has_residual):
    tensors = [
        t if t is None else t.requires_grad_() for t in draw((1, 2, 20), has_residual, has_bias)
    ]
    opcheck(torch.ops.ingot.norm.default, (*tensors, EPS, is_centred))
    x, residual, weight, bias = (t if t is None else t.detach() for t in tensors)
    statistics = torch.ops.ingot.norm(x, residual, weight, bias, EPS, is_centred)[2]
    arguments = (x, residual, x, weight, statistics, has_bias, is_centred)
    opcheck(torch.ops.ingot.norm_backward.default, arguments)


def test_what_does_not_fit_is_refused():
    x, weight = torch.randn(3, 8), torch.randn(8)
    with pytest.raises(ValueError, match=r"norm: got shapes \[\(3, 8\), \(9,\)\]"):
        norm(x, None, torch.randn(9), None, EPS, False)
    with pytest.raises(ValueError, match="expected one dtype"):
        norm(x, x.double(), weight, None, EPS, False)
