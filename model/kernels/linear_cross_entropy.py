"""Output matrix and cross entropy as one operation: all the logits are never held at once.

The rows are taken in chunks. A chunk's logits are turned into their own gradient where they lie
(`cross_entropy_rows`), and are multiplied at once into the gradients of the hidden states and of
the matrix, so that the backward pass has nothing left to do but scale (after Hsu et al. 2024,
"Liger Kernel", §3.2; with few large chunks, which keep the matrix products efficient).
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from model import chunks
from model.kernels import Kernels, cross_entropy_rows
from model.kernels.cross_entropy_rows import RowLoss


class Scored(NamedTuple):
    """What predicting a batch's targets came to."""

    loss: Tensor  # scalar, fp32
    n_correct: Tensor | None  # rows whose likeliest class is the target; None: not asked for


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """Mean cross entropy of the classes `hidden @ weightᵀ + bias`, in plain PyTorch.

    hidden: (N, d). weight: (V, d). targets: (N,) int64, the class of each row or `ignore_index`.
    bias: (V,). vocab_size: classes from there on only fill up the matrix. softcap: as in `logits`.
    label_smoothing: this share of the target is spread evenly over all classes (Szegedy et al.
    2016, §7). z_loss: this times the mean square of log Σ exp of the logits is added (Chowdhery et
    al. 2022, "PaLM", §5). Returns a scalar in fp32 (fp64 for fp64): the mean over the rows that are
    not ignored, 0 when all are.
    """
    scores = logits(hidden, weight, bias=bias, vocab_size=vocab_size, softcap=softcap)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    total = F.cross_entropy(
        scores,
        targets,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    is_kept = targets != ignore_index
    if z_loss:
        total = total + z_loss * (scores.logsumexp(-1).square() * is_kept).sum()
    return total / is_kept.sum().clamp(min=1)


def logits(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Scores (…, vocab_size) of hidden states (…, d).

    The product has all rows of `weight`, a size that tensor cores like, and is cut afterwards.
    softcap: scores become cap · tanh(score / cap) (Gemma 2, 2024).
    """
    scores = F.linear(hidden, weight, bias)[..., :vocab_size]
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    vocab_size: int | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    chunk_rows: int | None = None,
    counts_correct: bool = False,
    kernels: Kernels | Literal["inductor"] = "torch",
) -> Scored:
    """`reference`, in chunks; also how many rows are guessed right, where that is asked for.

    chunk_rows: rows whose logits are held at once; None: as the device likes it. Changes the result
    by rounding only. kernels: what turns logits into their gradient; inductor: torch's compiler.
    The gradient of `weight` is added up in fp32. Can't be differentiated twice, nor with
    `create_graph=True`.
    """
    is_on = torch.is_grad_enabled()
    needs = [is_on and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if chunk_rows is None:
        chunk_rows = chunks.chunk_rows(hidden.device.type, weight.shape[0])
    found, n_correct, *_ = _forward(
        hidden,
        weight,
        targets,
        bias,
        weight.shape[0] if vocab_size is None else vocab_size,
        softcap,
        label_smoothing,
        z_loss,
        ignore_index,
        chunk_rows,
        needs,
        counts_correct,
        kernels,
    )
    return Scored(found, n_correct if counts_correct else None)


_NEEDS = -3  # where `needs` stands among the operation's arguments


@torch.library.custom_op("ingot::linear_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    vocab_size: int,
    softcap: float | None,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
    chunk_rows: int,
    needs: list[bool],
    counts_correct: bool,
    kernels: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, hits, and the gradients of hidden, weight and bias (empty where not needed).

    The gradients are those of the loss divided by the last tensor, a power of two.
    """
    is_kept = targets != ignore_index
    share, unit = _shares(is_kept, hidden)
    row_loss, rows_ = RowLoss(vocab_size, softcap, label_smoothing, z_loss), _rows_of(kernels)
    grads = _Gradients(hidden, weight, bias, needs)
    losses = torch.empty_like(share)
    n_correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    size = chunks.equal(len(targets), chunk_rows)
    buffer = hidden.new_empty(size, weight.shape[0])
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        chunk = hidden[rows]
        scores = buffer[: len(chunk)]
        if bias is None:
            torch.mm(chunk, weight.t(), out=scores)
        else:
            torch.addmm(bias, chunk, weight.t(), out=scores)  # rounded once
        if counts_correct:
            guessed = scores[:, :vocab_size].argmax(-1)
            n_correct += ((guessed == targets[rows]) & is_kept[rows]).sum()
        losses[rows] = rows_(scores, targets[rows], share[rows], row_loss, with_gradient=any(needs))
        grads.add(scores, chunk, rows)
    return losses.sum() * unit, n_correct, grads.hidden, grads.weight, grads.bias, unit


def _shares(is_kept: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's share in the mean in units of the second tensor, a power of two: 1 to 2, or 0.

    A share of 1 / 65,536 would leave nothing of most gradients in fp16, whose loss scale comes only
    in the backward pass. Powers of two are multiplied without rounding.
    """
    count = is_kept.sum().clamp(min=1).to(_accumulated(hidden))
    mantissa, _ = torch.frexp(count)
    return is_kept / mantissa, mantissa / count


def _rows_of(kernels: str) -> Callable[..., Tensor]:
    if kernels == "torch":
        return cross_entropy_rows.rows_
    if kernels == "inductor":
        return _compiled_rows()
    from model.kernels import cross_entropy_rows_triton

    found: Callable[..., Tensor] = cross_entropy_rows_triton.rows_
    return found


@cache
def _compiled_rows() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(cross_entropy_rows.in_few_passes_)

    def rows_(
        logits: Tensor, targets: Tensor, share: Tensor, loss: RowLoss, *, with_gradient: bool
    ) -> Tensor:
        # Told ahead that their number changes, with masks and last chunks: else it is found out by
        # compiling for the first one alone. The loops over classes are the same.
        for tensor in (logits, targets, share):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(logits, targets, share, loss, with_gradient=with_gradient)

    return rows_


class _Gradients:
    """The gradients, filled in and added up chunk by chunk; empty where not needed."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: list[bool]
    ) -> None:
        self._matrix, self._needs = weight, needs
        wide = _accumulated(weight)
        # Each its own tensor: what an operation returns must not share memory.
        self.hidden = torch.empty_like(hidden) if needs[0] else hidden.new_empty(0)
        self.weight, self.bias = (hidden.new_empty(0, dtype=wide) for _ in range(2))
        if needs[1]:
            self.weight = torch.zeros_like(weight, dtype=wide)
        if needs[2] and bias is not None:
            self.bias = torch.zeros_like(bias, dtype=wide)

    def add(self, d_scores: Tensor, chunk: Tensor, rows: slice) -> None:
        """Add those of a chunk: the gradient of its scores (n, V), and its hidden states (n, d)."""
        if self._needs[0]:
            torch.mm(d_scores, self._matrix, out=self.hidden[rows])
        if self._needs[1]:
            _add_product(self.weight, d_scores.t(), chunk)
        if self._needs[2]:
            # In blocks: torch copies on a CPU what it adds up in another precision.
            for block in torch.split(
                d_scores, chunks.block_rows(chunk.device.type, len(self.bias))
            ):
                self.bias += block.sum(0, dtype=self.bias.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, with the sum in total's precision."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        # On a CPU a 16-bit product is rounded, once for each chunk.
        size = chunks.copy_rows(total.shape[1])
        for block, rows in zip(torch.split(total, size), torch.split(a, size), strict=True):
            block += rows @ b


def _accumulated(x: Tensor) -> torch.dtype:
    """The precision of sums: fp32, or fp64 for fp64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@_forward.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *more: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    needs = more[_NEEDS]
    grads = _Gradients(hidden, weight, bias, needs)
    scalar = hidden.new_empty((), dtype=_accumulated(hidden))
    n_correct = hidden.new_empty((), dtype=torch.int64)
    return scalar, n_correct, grads.hidden, grads.weight, grads.bias, torch.empty_like(scalar)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    hidden, weight, _, bias, *more = inputs
    ctx.save_for_backward(*output[2:])
    ctx.set_materialize_grads(False)  # of the gradients' own: zeros as large as they are
    ctx.needs = more[_NEEDS]
    ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 13
    *gradients, unit = ctx.saved_tensors
    found = [
        _scaled(gradient, grad * unit, dtype) if is_needed else None
        for gradient, dtype, is_needed in zip(gradients, ctx.dtypes, ctx.needs, strict=True)
    ]
    return found[0], found[1], None, found[2], *(None,) * 9


def _scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x · factor, rounded once to dtype."""
    scaled = torch.empty_like(x, dtype=dtype)
    if x.is_cuda:
        # Of no dimension, a tensor on a GPU is rounded to x's dtype first.
        factor = factor.reshape((1,) * x.dim())
    if x.is_cuda or torch.compiler.is_compiling():
        return torch.mul(x, factor, out=scaled)
    # In blocks: on a CPU torch makes a copy of what it computes in another dtype.
    size = chunks.copy_rows(max(1, x[:1].numel()))
    for block, part in zip(torch.split(scaled, size), torch.split(x, size), strict=True):
        torch.mul(part, factor, out=block)
    return scaled


_forward.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.ingot.linear_cross_entropy)
def _flops(hidden: list[int], weight: list[int], *arguments: Any, **more: Any) -> int:
    """Of one matrix product forward, and one for each gradient that is made with it."""
    needs = arguments[_NEEDS]
    products: int = 1 + needs[0] + needs[1]
    return 2 * hidden[0] * weight[0] * weight[1] * products
