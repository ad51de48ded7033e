"""`cross_entropy_rows.rows_` as one Triton kernel, which reads a row's logits twice at most.

One program to a row: a first pass keeps the running maximum and sum of exponentials (Milakov &
Gimelshein 2018, "Online normalizer calculation for softmax"), a second, which finds the row in the
second-level cache, writes the gradient over the logits. In 16 bit a row of 50,304 is 100 kB.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.cross_entropy_rows import RowLoss
from model.kernels.launching import OPTIONS, check_device, compute_type

_BLOCK, _WARPS = 4096, 8  # 16 numbers to a thread


def rows_(
    logits: Tensor, targets: Tensor, share: Tensor, loss: RowLoss, *, with_gradient: bool
) -> Tensor:
    """As `cross_entropy_rows.rows_`, on a GPU; NaN for a target that is no class.

    Raises ValueError for tensors on a CPU.
    """
    check_device(logits)
    losses = torch.empty_like(share)
    block = min(_BLOCK, triton.next_power_of_2(logits.shape[1]))
    _kernel[(len(logits),)](
        logits,
        targets.contiguous(),
        share.contiguous(),
        losses,
        logits.stride(0),
        logits.shape[1],
        loss.vocab_size,
        SOFTCAP=loss.softcap or 0.0,
        SMOOTHING=loss.label_smoothing,
        Z_LOSS=loss.z_loss,
        WITH_GRADIENT=with_gradient,
        BLOCK=block,
        COMPUTE=compute_type(logits),
        num_warps=max(1, block * _WARPS // _BLOCK),
        **OPTIONS,
    )
    return losses


@triton.jit
def _kernel(
    logits,
    targets,
    share,
    losses,
    stride,
    n_columns,  # of which those from n_classes on only fill up the row
    n_classes,
    SOFTCAP: tl.constexpr,  # constants of a run, in full precision
    SMOOTHING: tl.constexpr,
    Z_LOSS: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # row · stride does not fit in 32 bits
    logits += row * stride
    target = tl.load(targets + row)
    counts = tl.load(share + row).to(COMPUTE)
    columns = tl.arange(0, BLOCK)
    cap = tl.full((), SOFTCAP, COMPUTE)  # as they stand, Triton takes numbers for fp32
    smoothing, z_loss = tl.full((), SMOOTHING, COMPUTE), tl.full((), Z_LOSS, COMPUTE)
    if counts == 0.0:  # ignored: its logits may be anything
        _clear(logits, losses + row, columns, n_columns, WITH_GRADIENT, BLOCK)
        return
    # Of each lane its own maximum and sum, which are joined at the end.
    top = tl.full((BLOCK,), float("-inf"), COMPUTE)
    total = tl.zeros((BLOCK,), COMPUTE)
    plain = tl.zeros((BLOCK,), COMPUTE)
    for start in range(0, n_columns, BLOCK):
        at = start + columns
        x = _scores(logits, at, n_columns, n_classes, cap, SOFTCAP, COMPUTE)
        above = tl.maximum(top, x)
        base = tl.where(above == float("-inf"), 0.0, above)  # a lane that has seen nothing
        total = total * tl.exp(top - base) + tl.exp(x - base)
        top = above
        if SMOOTHING > 0:
            plain += tl.where(at < n_classes, x, 0.0)
    highest = tl.max(top, 0)
    log_sum = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    is_class = (target >= 0) & (target < n_classes)
    seen = tl.where(is_class, target, 0)
    at_target = _scores(logits, seen, n_columns, n_classes, cap, SOFTCAP, COMPUTE)
    found = (1.0 - smoothing) * (log_sum - at_target) + z_loss * log_sum * log_sum
    if SMOOTHING > 0:
        found += smoothing * (log_sum - tl.sum(plain, 0) / n_classes)
    tl.store(losses + row, tl.where(is_class, found * counts, float("nan")))
    if WITH_GRADIENT:
        slope = counts * (1.0 + 2.0 * z_loss * log_sum)
        spread = counts * smoothing / n_classes
        for start in range(0, n_columns, BLOCK):
            at = start + columns
            x = _scores(logits, at, n_columns, n_classes, cap, SOFTCAP, COMPUTE)
            wanted = tl.where(at == target, counts * (1.0 - smoothing), 0.0) + spread
            grad = tl.where(at < n_classes, slope * tl.exp(x - log_sum) - wanted, 0.0)
            if SOFTCAP > 0:
                part = tl.where(at < n_classes, x / cap, 0.0)
                grad *= 1.0 - part * part  # of tanh
            tl.store(logits + at, grad, mask=at < n_columns)


@triton.jit
def _clear(logits, loss, columns, n_columns, WITH_GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    tl.store(loss, 0.0)
    if WITH_GRADIENT:
        for start in range(0, n_columns, BLOCK):
            at = start + columns
            zeros = tl.zeros((BLOCK,), logits.dtype.element_ty)
            tl.store(logits + at, zeros, mask=at < n_columns)


@triton.jit
def _scores(logits, at, n_columns, n_classes, cap, SOFTCAP: tl.constexpr, COMPUTE: tl.constexpr):
    # Bounded by the row and not by the classes, whose number 16-byte loads do not divide.
    x = tl.load(logits + at, mask=at < n_columns, other=0.0).to(COMPUTE)
    if SOFTCAP > 0:
        x = _capped(x, cap)
    return tl.where(at < n_classes, x, float("-inf"))


@triton.jit
def _capped(x, cap):
    return cap * (2.0 * tl.sigmoid(2.0 * x / cap) - 1.0)  # tanh, which Triton has not
