"""Residual sum and RMS or layer norm as one operation, in one pass each way.

forward: reads x and the residual, writes their sum and its norm. backward: reads the gradients of
both and the sum, writes the one gradient of x and of the residual, and sums the gradients of weight
and bias on the way, where inductor reads everything again for them.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.launching import (
    OPTIONS,
    check_device,
    compute_type,
    persistent_programs,
    statistics_dtype,
    warps_for,
)


def reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    is_centred: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same as `norm`, in plain PyTorch."""
    total = x if residual is None else residual + x
    if is_centred:
        normed = F.layer_norm(total, weight.shape, weight, bias, eps)
    else:
        normed = F.rms_norm(total, weight.shape, weight, eps)
    return normed if residual is None else (normed, total)


def norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    is_centred: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise x + residual over the last dimension; with a residual, return the sum as well.

    x, residual: (…, d), of one dtype. weight, bias: (d,). is_centred: layer norm (Ba et al. 2016),
    the mean subtracted first; otherwise RMS norm (Zhang & Sennrich 2019), which has no bias.
    Statistics are taken in fp32. Raises ValueError for tensors on a CPU, or that do not fit.
    """
    check_device(x)
    if x.shape[-1:] != weight.shape or (residual is not None and residual.shape != x.shape):
        shapes = [tuple(t.shape) for t in (x, residual, weight) if t is not None]
        raise ValueError(f"norm: got shapes {shapes}, expected (…, d), the same again, and (d,)")
    if residual is not None and residual.dtype != x.dtype:
        raise ValueError(f"norm: got {x.dtype} and {residual.dtype}, expected one dtype")
    normed, total, _ = torch.ops.ingot.norm(x, residual, weight, bias, eps, is_centred)
    return normed if residual is None else (normed, total)


@torch.library.custom_op("ingot::norm", mutates_args=())
def _norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    is_centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm, the sum (empty without a residual), and 1/rms or (1/std, mean) of each row."""
    normed, total, statistics = _empty_outputs(
        x, has_residual=residual is not None, is_centred=is_centred
    )
    rows, width = _as_rows(x), x.shape[-1]
    others = x if residual is None else residual
    other_rows = _as_rows(others)
    block = triton.next_power_of_2(width)
    if len(rows):
        _forward_kernel[(len(rows),)](
            rows,
            other_rows,
            weight.contiguous(),
            weight if bias is None else bias.contiguous(),
            normed,
            total,
            statistics,
            len(rows),
            rows.stride(0),
            other_rows.stride(0),
            eps,
            WIDTH=width,
            BLOCK=block,
            HAS_RESIDUAL=residual is not None,
            HAS_BIAS=bias is not None,
            IS_CENTRED=is_centred,
            COMPUTE=compute_type(x),
            num_warps=warps_for(block),
            **OPTIONS,
        )
    return normed, total, statistics


@_norm.register_fake
def _(x, residual, weight, bias, eps, is_centred):
    return _empty_outputs(x, has_residual=residual is not None, is_centred=is_centred)


def _empty_outputs(
    x: Tensor, *, has_residual: bool, is_centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows = x.numel() // x.shape[-1]
    statistics = x.new_empty((1 + is_centred, n_rows), dtype=statistics_dtype(x))
    return x.new_empty(x.shape), x.new_empty(x.shape if has_residual else 0), statistics


@torch.library.custom_op("ingot::norm_backward", mutates_args=())
def _norm_backward(
    d_normed: Tensor,
    d_total: Tensor | None,
    source: Tensor,
    weight: Tensor,
    statistics: Tensor,
    has_bias: bool,
    is_centred: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of `source`, the normalised sum; and those of weight and bias in fp32."""
    d_source = source.new_empty(source.shape)
    d_rows, source_rows = _as_rows(d_normed), _as_rows(source)
    more_rows = d_rows if d_total is None else _as_rows(d_total)
    n_rows, width = source_rows.shape
    block = triton.next_power_of_2(width)
    n_programs = persistent_programs(source.device, n_rows, block)
    # Of each program a row, written once: added up by atomics the sum would change between runs.
    partial = statistics.new_empty((1 + has_bias, n_programs, width))
    _backward_kernel[(n_programs,)](
        d_rows,
        more_rows,
        source_rows,
        weight.contiguous(),
        statistics,
        d_source,
        partial,
        n_rows,
        d_rows.stride(0),
        more_rows.stride(0),
        source_rows.stride(0),
        WIDTH=width,
        BLOCK=block,
        HAS_TOTAL=d_total is not None,
        HAS_BIAS=has_bias,
        IS_CENTRED=is_centred,
        COMPUTE=compute_type(source),
        num_warps=warps_for(block),
        **OPTIONS,
    )
    return d_source, partial.sum(1)


@_norm_backward.register_fake
def _(d_normed, d_total, source, weight, statistics, has_bias, is_centred):
    sums = statistics.new_empty((1 + has_bias, source.shape[-1]))
    return source.new_empty(source.shape), sums


def _save(ctx, inputs, output) -> None:
    x, residual, weight, bias, _, is_centred = inputs
    _, total, statistics = output
    ctx.save_for_backward(x if residual is None else total, weight, statistics)
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)
    ctx.has_residual, ctx.bias_dtype = residual is not None, None if bias is None else bias.dtype
    ctx.is_centred = is_centred


def _differentiate(ctx, d_normed, d_total, _):
    source, weight, statistics = ctx.saved_tensors
    if d_normed is None:
        d_normed = torch.zeros_like(source)
    has_bias = ctx.bias_dtype is not None
    if not ctx.has_residual:
        d_total = None
    d_source, sums = torch.ops.ingot.norm_backward(
        d_normed, d_total, source, weight, statistics, has_bias, ctx.is_centred
    )
    d_residual = d_source if ctx.has_residual else None
    d_bias = sums[1].to(ctx.bias_dtype) if has_bias else None
    return d_source, d_residual, sums[0].to(weight.dtype), d_bias, None, None


_norm.register_autograd(_differentiate, setup_context=_save)


def _as_rows(x: Tensor) -> Tensor:
    """(…, d) as (rows, d) with neighbours side by side; copied only where it has to be."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


@triton.jit
def _forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    normed_ptr,
    total_ptr,
    statistics_ptr,
    n_rows,
    x_stride,
    residual_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_CENTRED: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    is_real = column < WIDTH
    source = tl.load(x_ptr + row * x_stride + column, mask=is_real, other=0.0)
    if HAS_RESIDUAL:
        more = tl.load(residual_ptr + row * residual_stride + column, mask=is_real, other=0.0)
        # Rounded as it is stored, because the backward pass reads it back.
        source = (source.to(COMPUTE) + more.to(COMPUTE)).to(source.dtype)
        tl.store(total_ptr + row * WIDTH + column, source, mask=is_real)
    value = source.to(COMPUTE)
    if IS_CENTRED:
        mean = tl.sum(value, 0) / WIDTH
        value = tl.where(is_real, value - mean, 0.0)
        tl.store(statistics_ptr + n_rows + row, mean)
    scale = 1 / tl.sqrt(tl.sum(value * value, 0) / WIDTH + eps)
    tl.store(statistics_ptr + row, scale)
    weight = tl.load(weight_ptr + column, mask=is_real, other=0.0).to(COMPUTE)
    normed = value * scale * weight
    if HAS_BIAS:
        normed += tl.load(bias_ptr + column, mask=is_real, other=0.0).to(COMPUTE)
    tl.store(normed_ptr + row * WIDTH + column, normed.to(source.dtype), mask=is_real)


@triton.jit
def _backward_kernel(
    d_normed_ptr,
    d_total_ptr,
    source_ptr,
    weight_ptr,
    statistics_ptr,
    d_source_ptr,
    partial_ptr,
    n_rows,
    d_normed_stride,
    d_total_stride,
    source_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_CENTRED: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    program, n_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    is_real = column < WIDTH
    weight = tl.load(weight_ptr + column, mask=is_real, other=0.0).to(COMPUTE)
    d_weight = tl.zeros((BLOCK,), COMPUTE)
    d_bias = tl.zeros((BLOCK,), COMPUTE)
    row = program.to(tl.int64)
    # `while`: the interpreter of Triton 3.6 cannot count over `range` of a tensor with NumPy 2.4.
    while row < n_rows:
        value = tl.load(source_ptr + row * source_stride + column, mask=is_real, other=0.0)
        d_normed = tl.load(d_normed_ptr + row * d_normed_stride + column, mask=is_real, other=0.0)
        value, d_normed = value.to(COMPUTE), d_normed.to(COMPUTE)
        scale = tl.load(statistics_ptr + row)
        if IS_CENTRED:
            value -= tl.load(statistics_ptr + n_rows + row)
        value *= scale
        d_weight += d_normed * value
        if HAS_BIAS:
            d_bias += d_normed
        # Beyond WIDTH d_normed is 0, so whatever stands in `value` adds nothing.
        d_value = d_normed * weight
        d_source = d_value - value * (tl.sum(d_value * value, 0) / WIDTH)
        if IS_CENTRED:
            d_source -= tl.sum(d_value, 0) / WIDTH
        d_source *= scale
        if HAS_TOTAL:
            more = tl.load(d_total_ptr + row * d_total_stride + column, mask=is_real, other=0.0)
            d_source += more.to(COMPUTE)
        d_source = d_source.to(d_source_ptr.dtype.element_ty)
        tl.store(d_source_ptr + row * WIDTH + column, d_source, mask=is_real)
        row += n_programs
    tl.store(partial_ptr + program * WIDTH + column, d_weight, mask=is_real)
    if HAS_BIAS:
        tl.store(partial_ptr + (n_programs + program) * WIDTH + column, d_bias, mask=is_real)
