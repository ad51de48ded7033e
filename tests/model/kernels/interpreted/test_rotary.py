"""Packed heads taken apart, normalised and turned, against complex numbers in fp64."""

import pytest
import torch
from torch.library import opcheck

from model.kernels.rotary import reference, split_and_turn
from model.rotary import Rotary
from tests.model.kernels.interpreted.closeness import (
    assert_close,
    assert_same,
    outputs_and_gradients,
)

EPS = 1e-6
# rows, tokens, query heads, key heads, width: more heads than a program holds, pairs that are no
# power of two, one head, many tokens to a program
SHAPES = [(2, 3, 6, 2, 24), (1, 2, 30, 6, 64), (2, 3, 1, 1, 2), (1, 17, 4, 4, 10)]


def angles(rows, tokens, width, scale=1.0):
    angle = torch.randn(rows, tokens, 1, width // 2, dtype=torch.float64)
    return Rotary.of(scale * angle.cos(), scale * angle.sin())


def in_fp32(rotary):
    return Rotary(rotary.cos.float(), rotary.sin.float())


def formula(packed, rotary, n_heads, n_kv_heads, gains, eps):
    parts = list(packed.split((n_heads, n_kv_heads, n_kv_heads), dim=2))
    for number, gain in enumerate(gains):
        square = parts[number].square().mean(-1, keepdim=True)
        parts[number] = parts[number] / (square + eps).sqrt() * gain
    for number in (0, 1):
        first, second = parts[number].chunk(2, dim=-1)
        turned = torch.complex(first, second) * torch.complex(*rotary.halves())
        parts[number] = torch.cat((turned.real, turned.imag), -1)
    return tuple(parts)


def draw(shape, has_norm, scale=1.0):
    rows, tokens, n_heads, n_kv_heads, width = shape
    packed = scale * torch.randn(rows, tokens, n_heads + 2 * n_kv_heads, width)
    return [packed, *(torch.randn(width) for _ in range(2 * has_norm))]


def of_shape(function, shape, rotary):
    return lambda packed, *gains: function(packed, rotary, *shape[2:4], gains, EPS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("own_angles", [False, True])
def test_it_is_the_formula(shape, has_norm, own_angles):
    inputs = draw(shape, has_norm)
    rotary = angles(shape[0] if own_angles else 1, shape[1], shape[4], scale=1.3)  # as YaRN has it
    near = in_fp32(rotary)
    found = outputs_and_gradients(of_shape(split_and_turn, shape, near), inputs, torch.float32)
    want = outputs_and_gradients(of_shape(formula, shape, rotary), inputs, torch.float64)
    plain = outputs_and_gradients(of_shape(reference, shape, near), inputs, torch.float32)
    for ours, theirs, torchs in zip(found, want, plain, strict=True):
        assert_close(ours, theirs)
        assert_close(torchs, theirs)
    assert torch.equal(found[0][2], plain[0][2]), "values pass untouched"


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_magnitudes_and_gains_of_zero(scale):
    """The gradient of what a gain of zero hides is not zero."""
    shape = (2, 3, 3, 1, 12)
    inputs = draw(shape, True, scale)
    inputs[0][1, 2] = 0.0  # a token of zeros
    inputs[1][[0, 7]], inputs[2][3] = 0.0, 0.0
    rotary = angles(1, 3, 12)
    near = in_fp32(rotary)
    found = outputs_and_gradients(of_shape(split_and_turn, shape, near), inputs, torch.float32)
    want = outputs_and_gradients(of_shape(formula, shape, rotary), inputs, torch.float64)
    for ours, theirs in zip(found, want, strict=True):
        assert_close(ours, theirs)
    assert found[1][1][0] != 0


@pytest.mark.parametrize("has_norm", [False, True])
def test_strides_and_offsets(has_norm):
    """Gradients as attention leaves them, heads before tokens; and an input that is a view."""
    shape = (2, 3, 4, 2, 16)
    packed, *gains = draw((2, 6, 4, 2, 20), has_norm)
    packed, gains = packed[:, 2:5, :, 3:19], [gain[4:] for gain in gains]
    rotary = angles(1, 3, 16)
    onto = [torch.randn(2, heads, 3, 16).transpose(1, 2) for heads in (4, 2)]
    onto.append(torch.randn(3, 1, 1).expand(2, 3, 2, 16))
    gradients = []
    for function, dtype, turned in (
        (split_and_turn, torch.float32, in_fp32(rotary)),
        (formula, torch.float64, rotary),
    ):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (packed, *gains)]
        outputs = function(leaves[0], turned, *shape[2:4], tuple(leaves[1:]), EPS)
        found = torch.autograd.grad(outputs, leaves, [t.to(dtype) for t in onto])
        gradients.append([*outputs, *found])
    assert_close(*gradients)


def test_no_tokens():
    shape = (2, 0, 4, 2, 8)
    run = of_shape(split_and_turn, shape, in_fp32(angles(1, 0, 8)))
    outputs, gradients = outputs_and_gradients(run, draw(shape, True), torch.float32)
    assert [t.shape[1] for t in outputs] == [0, 0, 0]
    assert not any(gradient.any() for gradient in gradients[1:])


def test_twice_the_same_and_rows_apart():
    shape = (3, 6, 4, 2, 16)
    packed, *gains = draw(shape, True)
    rotary = in_fp32(angles(3, 6, 16))
    run = of_shape(split_and_turn, shape, rotary)
    once = outputs_and_gradients(run, [packed, *gains], torch.float32)
    again = outputs_and_gradients(run, [packed, *gains], torch.float32)
    assert_same(once, again)
    order = torch.randperm(3)
    moved = Rotary(rotary.cos[order], rotary.sin[order])
    found = split_and_turn(packed[order], moved, 4, 2, tuple(gains), EPS)
    assert all(torch.equal(a[order], b) for a, b in zip(once[0], found, strict=True))


@pytest.mark.parametrize("has_norm", [False, True])
def test_gradients_are_those_of_the_forward_pass(has_norm):
    shape = (1, 9, 2, 1, 4)
    leaves = [t.double().requires_grad_() for t in draw(shape, has_norm)]
    run = of_shape(split_and_turn, shape, angles(1, 9, 4))
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("has_norm", [False, True])
def test_the_operation_is_well_registered(has_norm):
    shape = (1, 2, 2, 1, 8)
    packed, *gains = draw(shape, has_norm)
    rotary = in_fp32(angles(1, 2, 8))
    q_gain, k_gain = gains or (None, None)
    leaves = [t if t is None else t.clone().requires_grad_() for t in (packed, q_gain, k_gain)]
    arguments = (leaves[0], *rotary, *leaves[1:], 2, EPS)
    opcheck(torch.ops.ingot.split_and_turn.default, arguments)
    q, k, v = torch.ops.ingot.split_and_turn(packed, *rotary, q_gain, k_gain, 2, EPS)
    arguments = (q, k, v, *rotary, packed if has_norm else None, q_gain, k_gain, EPS)
    opcheck(torch.ops.ingot.split_and_turn_backward.default, arguments)


def test_what_does_not_fit_is_refused():
    packed, rotary = torch.randn(1, 2, 7, 8), in_fp32(angles(1, 2, 8))
    with pytest.raises(ValueError, match=r"got shape \(1, 2, 7, 8\), expected \(B, T, 8, 8\)"):
        split_and_turn(packed, rotary, 4, 2, (), EPS)
