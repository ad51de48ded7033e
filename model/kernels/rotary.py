"""Packed queries, keys and values taken apart, normalised and turned as one operation.

forward: reads the packed tensor once and writes queries, keys and values, each a whole tensor that
attention takes without a copy. backward: reads their three gradients where attention left them and
writes the packed gradient at once, which plain PyTorch pieces together in passes of its own.

Not in place, and what came in is kept where there is a norm: docs/adr/0012 says why.
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
from model.rotary import Rotary, rotate

_TILE = 1024  # pairs of a program at most: 8 for each thread of 4 warps


def reference(
    packed: Tensor,
    rotary: Rotary,
    n_heads: int,
    n_kv_heads: int,
    gains: tuple[Tensor, ...],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `split_and_turn`, in plain PyTorch."""
    q, k, v = packed.split((n_heads, n_kv_heads, n_kv_heads), dim=2)
    if gains:
        q, k = (F.rms_norm(t, gain.shape, gain, eps) for t, gain in zip((q, k), gains, strict=True))
    return rotate(q, rotary), rotate(k, rotary), v


def split_and_turn(
    packed: Tensor,
    rotary: Rotary,
    n_heads: int,
    n_kv_heads: int,
    gains: tuple[Tensor, ...],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q (B, T, H, hd), k and v (B, T, Hkv, hd) of packed (B, T, H + 2·Hkv, hd).

    rotary: angles of positions; pairs are (i, i + hd/2). gains: of the RMS norms of each query and
    of each key head, (hd,) each; empty where there is no norm. All in fp32, rounded once, where
    `reference` rounds between norm and rotation too. Raises ValueError for tensors on a CPU, or
    that do not fit.
    """
    check_device(packed)
    heads, head_dim = packed.shape[2:]
    if heads != n_heads + 2 * n_kv_heads or rotary.cos.shape[-1] != head_dim:
        raise ValueError(
            f"packed: got shape {tuple(packed.shape)}, expected (B, T, {n_heads + 2 * n_kv_heads},"
            f" {rotary.cos.shape[-1]}): heads of queries, keys and values, and two numbers for"
            " each angle"
        )
    q_gain, k_gain = gains if gains else (None, None)
    return torch.ops.ingot.split_and_turn(packed, *rotary.halves(), q_gain, k_gain, n_heads, eps)


@torch.library.custom_op("ingot::split_and_turn", mutates_args=())
def _split_and_turn(
    packed: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    n_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _empty_outputs(packed, n_heads)
    packed = _side_by_side(packed)
    batch_size, seq_len, heads, head_dim = packed.shape
    tile = _tile(heads, head_dim)
    if packed.numel():
        _forward_kernel[(batch_size * seq_len, triton.cdiv(heads, tile[0]))](
            packed,
            outputs,
            (cos.contiguous(), sin.contiguous()),
            (packed, packed) if q_gain is None else (q_gain.contiguous(), k_gain.contiguous()),
            packed.stride()[:3],
            *(seq_len, _batch_stride(cos), eps),
            N_HEADS=n_heads,
            N_KV_HEADS=(heads - n_heads) // 2,
            HALF=head_dim // 2,
            BLOCK_HEADS=tile[0],
            BLOCK_HALF=tile[1],
            HAS_NORM=q_gain is not None,
            COMPUTE=compute_type(packed),
            num_warps=warps_for(tile[0] * tile[1]),
            **OPTIONS,
        )
    return outputs


@_split_and_turn.register_fake
def _(packed, cos, sin, q_gain, k_gain, n_heads, eps):
    return _empty_outputs(packed, n_heads)


def _empty_outputs(packed: Tensor, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    *tokens, heads, head_dim = packed.shape
    n_kv_heads = (heads - n_heads) // 2
    sizes = (n_heads, n_kv_heads, n_kv_heads)
    q, k, v = (packed.new_empty((*tokens, size, head_dim)) for size in sizes)
    return q, k, v


@torch.library.custom_op("ingot::split_and_turn_backward", mutates_args=())
def _split_and_turn_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cos: Tensor,
    sin: Tensor,
    packed: Tensor | None,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of `packed`, and of both gains in fp32 (2, hd), empty without a norm."""
    has_norm = packed is not None
    d_packed, d_gains = _empty_gradients(dq, dk, has_norm=has_norm)
    dq, dk, dv = (_side_by_side(t) for t in (dq, dk, dv))
    batch_size, seq_len, heads, head_dim = d_packed.shape
    n_tokens = batch_size * seq_len
    packed = _side_by_side(packed) if has_norm else dq
    tile = _tile(heads, head_dim)
    elements, blocks = tile[0] * tile[1], triton.cdiv(heads, tile[0])
    n_programs = persistent_programs(dq.device, n_tokens, 2 * elements) if has_norm else n_tokens
    # Of each program a row, written once: added up by atomics the sum would change between runs.
    partial = d_gains.new_empty((n_programs * blocks, *d_gains.shape))
    if n_programs:
        _backward_kernel[(n_programs, blocks)](
            (dq, dk, dv),
            packed,
            (d_packed, partial),
            (cos.contiguous(), sin.contiguous()),
            (dq, dq) if q_gain is None else (q_gain.contiguous(), k_gain.contiguous()),
            tuple(t.stride()[:3] for t in (dq, dk, dv)),
            packed.stride()[:3],
            *(n_tokens, seq_len, _batch_stride(cos), eps),
            N_HEADS=dq.shape[2],
            N_KV_HEADS=dk.shape[2],
            HALF=head_dim // 2,
            BLOCK_HEADS=tile[0],
            BLOCK_HALF=tile[1],
            HAS_NORM=has_norm,
            COMPUTE=compute_type(dq),
            num_warps=warps_for(elements),
            **OPTIONS,
        )
    return d_packed, partial.sum(0)


@_split_and_turn_backward.register_fake
def _(dq, dk, dv, cos, sin, packed, q_gain, k_gain, eps):
    return _empty_gradients(dq, dk, has_norm=packed is not None)


def _empty_gradients(dq: Tensor, dk: Tensor, *, has_norm: bool) -> tuple[Tensor, Tensor]:
    batch_size, seq_len, n_heads, head_dim = dq.shape
    d_packed = dq.new_empty((batch_size, seq_len, n_heads + 2 * dk.shape[2], head_dim))
    return d_packed, dq.new_empty((2, head_dim if has_norm else 0), dtype=statistics_dtype(dq))


def _save(ctx, inputs, output) -> None:
    packed, cos, sin, q_gain, k_gain, _, ctx.eps = inputs
    ctx.save_for_backward(cos, sin, packed if q_gain is not None else None, q_gain, k_gain)


def _differentiate(ctx, dq, dk, dv):
    cos, sin, packed, q_gain, k_gain = ctx.saved_tensors
    d_packed, d_gains = torch.ops.ingot.split_and_turn_backward(
        dq, dk, dv, cos, sin, packed, q_gain, k_gain, ctx.eps
    )
    if packed is None:
        return d_packed, None, None, None, None, None, None
    dq_gain, dk_gain = (d.to(gain.dtype) for d, gain in zip(d_gains, (q_gain, k_gain), strict=True))
    return d_packed, None, None, dq_gain, dk_gain, None, None


_split_and_turn.register_autograd(_differentiate, setup_context=_save)


def _tile(heads: int, head_dim: int) -> tuple[int, int]:
    """Heads and pairs that a program holds."""
    pairs = triton.next_power_of_2(head_dim // 2)
    return min(triton.next_power_of_2(heads), max(_TILE // pairs, 1)), pairs


def _side_by_side(x: Tensor) -> Tensor:
    """x, copied if neighbours of the last dimension do not lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _batch_stride(cos: Tensor) -> int:
    """Elements from one row's angles to the next, 0 where all rows have the same."""
    return 0 if cos.shape[0] == 1 else cos[0].numel()


@triton.jit
def _load_pairs(ptr, strides, token, head, pair, mask, HALF: tl.constexpr, COMPUTE: tl.constexpr):
    """Both halves of some heads, 0 where the mask is. token: row and position in it."""
    ptr += token[0] * strides[0] + token[1] * strides[1]
    ptr += head * strides[2] + pair
    first = tl.load(ptr, mask=mask, other=0.0).to(COMPUTE)
    second = tl.load(ptr + HALF, mask=mask, other=0.0).to(COMPUTE)
    return first, second


@triton.jit
def _store_pairs(ptr, head, pair, first, second, mask, HALF: tl.constexpr):
    """Write both halves of some heads. head: counted over the whole tensor."""
    ptr += head * (2 * HALF) + pair
    tl.store(ptr, first.to(ptr.dtype.element_ty), mask=mask)
    tl.store(ptr + HALF, second.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_angles(ptrs, token, angle_stride, pair, HALF: tl.constexpr, COMPUTE: tl.constexpr):
    offset = token[0] * angle_stride + token[1] * HALF + pair
    cos = tl.load(ptrs[0] + offset, mask=pair < HALF, other=0.0).to(COMPUTE)
    sin = tl.load(ptrs[1] + offset, mask=pair < HALF, other=0.0).to(COMPUTE)
    return cos, sin


@triton.jit
def _load_gains(ptrs, is_q, pair, HALF: tl.constexpr, COMPUTE: tl.constexpr):
    """Both halves of the gain of each head: that of queries, or of keys."""
    is_real = pair < HALF
    q_first = tl.load(ptrs[0] + pair, mask=is_real, other=0.0).to(COMPUTE)
    q_second = tl.load(ptrs[0] + HALF + pair, mask=is_real, other=0.0).to(COMPUTE)
    k_first = tl.load(ptrs[1] + pair, mask=is_real, other=0.0).to(COMPUTE)
    k_second = tl.load(ptrs[1] + HALF + pair, mask=is_real, other=0.0).to(COMPUTE)
    return tl.where(is_q, q_first, k_first), tl.where(is_q, q_second, k_second)


@triton.jit
def _mean(first, second, HALF: tl.constexpr):
    """Of each head the mean of both halves, (heads, 1)."""
    return ((tl.sum(first, 1) + tl.sum(second, 1)) / (2 * HALF))[:, None]


@triton.jit
def _heads(block, N_HEADS: tl.constexpr, N_KV_HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr):
    """The heads of a block, (heads, 1), counted among queries, among keys, and among values."""
    head = (block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
    return head, head - N_HEADS, head - N_HEADS - N_KV_HEADS


@triton.jit
def _masks(heads, pair, N_KV_HEADS: tl.constexpr, HALF: tl.constexpr):
    """Where queries, where keys and where values stand."""
    is_real = pair < HALF
    is_k = (heads[1] >= 0) & (heads[2] < 0) & is_real
    is_v = (heads[2] >= 0) & (heads[2] < N_KV_HEADS) & is_real
    return (heads[1] < 0) & is_real, is_k, is_v


@triton.jit
def _forward_kernel(
    packed_ptr,
    output_ptrs,
    angle_ptrs,
    gain_ptrs,
    strides,
    seq_len,
    angle_stride,
    eps,
    N_HEADS: tl.constexpr,
    N_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    token = (number // seq_len, number % seq_len)
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    heads = _heads(tl.program_id(1), N_HEADS, N_KV_HEADS, BLOCK_HEADS)
    is_q, is_k, is_v = _masks(heads, pair, N_KV_HEADS, HALF)
    first, second = _load_pairs(
        packed_ptr, strides, token, heads[0], pair, is_q | is_k | is_v, HALF, COMPUTE
    )
    _store_pairs(output_ptrs[2], number * N_KV_HEADS + heads[2], pair, first, second, is_v, HALF)
    if HAS_NORM:
        scale = 1 / tl.sqrt(_mean(first * first, second * second, HALF) + eps)
        gain_first, gain_second = _load_gains(gain_ptrs, heads[1] < 0, pair, HALF, COMPUTE)
        first, second = first * scale * gain_first, second * scale * gain_second
    cos, sin = _load_angles(angle_ptrs, token, angle_stride, pair, HALF, COMPUTE)
    first, second = first * cos - second * sin, second * cos + first * sin
    q_head, k_head = number * N_HEADS + heads[0], number * N_KV_HEADS + heads[1]
    _store_pairs(output_ptrs[0], q_head, pair, first, second, is_q, HALF)
    _store_pairs(output_ptrs[1], k_head, pair, first, second, is_k, HALF)


@triton.jit
def _backward_kernel(
    gradient_ptrs,
    packed_ptr,
    output_ptrs,
    angle_ptrs,
    gain_ptrs,
    gradient_strides,
    packed_strides,
    n_tokens,
    seq_len,
    angle_stride,
    eps,
    N_HEADS: tl.constexpr,
    N_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    heads = _heads(tl.program_id(1), N_HEADS, N_KV_HEADS, BLOCK_HEADS)
    masks = _masks(heads, pair, N_KV_HEADS, HALF)
    is_q, is_turned = heads[1] < 0, heads[2] < 0
    if HAS_NORM:
        sum_first = tl.zeros((BLOCK_HEADS, BLOCK_HALF), COMPUTE)
        sum_second = tl.zeros((BLOCK_HEADS, BLOCK_HALF), COMPUTE)
    number = tl.program_id(0).to(tl.int64)
    # `while`: the interpreter of Triton 3.6 cannot count over `range` of a tensor with NumPy 2.4.
    while number < n_tokens:
        token = (number // seq_len, number % seq_len)
        d_first, d_second = _load_gradients(
            gradient_ptrs, gradient_strides, token, heads, pair, masks, HALF, COMPUTE
        )
        cos, sin = _load_angles(angle_ptrs, token, angle_stride, pair, HALF, COMPUTE)
        back_first, back_second = d_first * cos + d_second * sin, d_second * cos - d_first * sin
        if HAS_NORM:
            mask = masks[0] | masks[1]
            x = _load_pairs(packed_ptr, packed_strides, token, heads[0], pair, mask, HALF, COMPUTE)
            # Read again for each token, from the cache: kept, they would take too many registers.
            gains = _load_gains(gain_ptrs, is_q, pair, HALF, COMPUTE)
            back_first, back_second, own_first, own_second = _norm_backward(
                back_first, back_second, x, gains, eps, HALF
            )
            sum_first += own_first
            sum_second += own_second
        head = number * (N_HEADS + 2 * N_KV_HEADS) + heads[0]
        first = tl.where(is_turned, back_first, d_first)
        second = tl.where(is_turned, back_second, d_second)
        mask = masks[0] | masks[1] | masks[2]
        _store_pairs(output_ptrs[0], head, pair, first, second, mask, HALF)
        number += tl.num_programs(0)
    if HAS_NORM:
        is_k = is_turned & (heads[1] >= 0)
        _store_sums(output_ptrs[1], 0, sum_first, sum_second, is_q, HALF, BLOCK_HALF)
        _store_sums(output_ptrs[1], 1, sum_first, sum_second, is_k, HALF, BLOCK_HALF)


@triton.jit
def _norm_backward(d_first, d_second, x, gains, eps, HALF: tl.constexpr):
    """From gradients of normed heads: those of x, and each head's own of its gain."""
    scale = 1 / tl.sqrt(_mean(x[0] * x[0], x[1] * x[1], HALF) + eps)
    first, second = x[0] * scale, x[1] * scale
    own_first, own_second = d_first * first, d_second * second
    along = _mean(own_first * gains[0], own_second * gains[1], HALF)
    d_first = (d_first * gains[0] - first * along) * scale
    d_second = (d_second * gains[1] - second * along) * scale
    return d_first, d_second, own_first, own_second


@triton.jit
def _load_gradients(
    ptrs, strides, token, heads, pair, masks, HALF: tl.constexpr, COMPUTE: tl.constexpr
):
    """Of each head the gradient, in whichever of the three tensors it stands."""
    q = _load_pairs(ptrs[0], strides[0], token, heads[0], pair, masks[0], HALF, COMPUTE)
    k = _load_pairs(ptrs[1], strides[1], token, heads[1], pair, masks[1], HALF, COMPUTE)
    v = _load_pairs(ptrs[2], strides[2], token, heads[2], pair, masks[2], HALF, COMPUTE)
    return q[0] + k[0] + v[0], q[1] + k[1] + v[1]


@triton.jit
def _store_sums(ptr, kind, first, second, is_kind, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """Write this program's gradient of one gain: the sum over the heads of its kind."""
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    pair = tl.arange(0, BLOCK_HALF)
    ptr += (2 * program + kind) * (2 * HALF) + pair
    tl.store(ptr, tl.sum(tl.where(is_kind, first, 0.0), 0), mask=pair < HALF)
    tl.store(ptr + HALF, tl.sum(tl.where(is_kind, second, 0.0), 0), mask=pair < HALF)
