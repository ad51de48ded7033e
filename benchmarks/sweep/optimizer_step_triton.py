"""`runtime.one_pass.update` as one Triton kernel: every number is read once and written once."""

import triton
import triton.language as tl

from benchmarks.sweep.optimizer_step import Factors, Partition
from model.kernels.launching import OPTIONS, check_device

_BLOCK, _WARPS = 1024, 4  # 8 numbers to a thread


def one_pass_(part: Partition, factors: Factors) -> None:
    """Step a partition on a GPU. Raises ValueError for one on a CPU."""
    check_device(part.weights)
    (beta1, beta2), size = part.settings.betas, len(part.weights)
    _kernel[(triton.cdiv(size, _BLOCK),)](
        part.weights,
        part.first,
        part.second,
        part.gradient,
        part.low,
        *factors,
        size,
        BETA1=beta1,
        BETA2=beta2,
        EPS=part.settings.eps,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
        **OPTIONS,
    )


@triton.jit
def _kernel(
    weights,
    first,
    second,
    gradient,
    low,
    unscale,  # pointers, so that nobody waits for the gradients' norm
    rate,
    correction,
    kept,
    size,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK  # a partition may have more than 2³¹ elements
    at = start + tl.arange(0, BLOCK)
    is_inside = at < size
    scaled = tl.load(gradient + at, mask=is_inside, other=0.0) * tl.load(unscale)
    m = tl.load(first + at, mask=is_inside, other=0.0)
    v = tl.load(second + at, mask=is_inside, other=0.0)
    w = tl.load(weights + at, mask=is_inside, other=0.0)
    m += (scaled - m) * (1.0 - BETA1)
    v = v * BETA2 + scaled * scaled * (1.0 - BETA2)
    root = tl.sqrt_rn(v) / tl.load(correction) + EPS
    w = w * tl.load(kept) - tl.load(rate) * m / root
    tl.store(first + at, m, mask=is_inside)
    tl.store(second + at, v, mask=is_inside)
    tl.store(weights + at, w, mask=is_inside)
    tl.store(low + at, w, mask=is_inside)
