"""Losses of rows of logits, and their gradient in place of the logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.chunks import block_rows


class RowLoss(NamedTuple):
    """The loss of one row; see `linear_cross_entropy.reference`."""

    vocab_size: int
    softcap: float | None
    label_smoothing: float
    z_loss: float


def rows_(
    logits: Tensor, targets: Tensor, share: Tensor, loss: RowLoss, *, with_gradient: bool
) -> Tensor:
    """Losses (n,) of rows of logits, times their share; the logits become their own gradient.

    logits: (n, V), V ≥ vocab_size, overwritten where `with_gradient`. targets: (n,) int64; of rows
    with no share any number. share: (n,) fp32, or fp64 for fp64: what each row's loss counts, 0 for
    one that is ignored.
    """
    size = block_rows(logits.device.type, logits.shape[1])
    targets = targets.where(share > 0, 0)
    blocks = zip(*(torch.split(x, size) for x in (logits, targets, share)), strict=True)
    found = [_block_(x, at, counts, loss, with_gradient=with_gradient) for x, at, counts in blocks]
    return torch.cat(found)


def in_few_passes_(
    logits: Tensor, targets: Tensor, share: Tensor, loss: RowLoss, *, with_gradient: bool
) -> Tensor:
    """`rows_` as a compiler likes it: all fused, nothing kept in fp32 but, on a CPU, a tanh."""
    scores, at, column = logits[:, : loss.vocab_size], targets[:, None], share[:, None]
    wide = scores.to(share.dtype)
    if loss.softcap is not None:
        wide = loss.softcap * torch.tanh(wide / loss.softcap)
    top = wide.amax(-1, keepdim=True)
    log_of_sum = (wide - top).exp().sum(-1, keepdim=True).log()
    log_sum = top + log_of_sum
    keep, spread = 1 - loss.label_smoothing, loss.label_smoothing / loss.vocab_size
    # Comparisons with each class: what gathers or scatters would need a copy of the logits.
    is_target = torch.arange(loss.vocab_size, device=logits.device) == at
    # Below the largest, all of them: of large numbers little would be left of a difference.
    losses = log_of_sum - keep * (wide - top).where(is_target, 0).sum(-1, keepdim=True)
    if spread:
        losses = losses - spread * (wide - top).sum(-1, keepdim=True)
    if loss.z_loss:
        losses = losses + loss.z_loss * log_sum.square()
    if with_gradient:
        grad = (wide - top - log_of_sum).exp() * (1 + 2 * loss.z_loss * log_sum)
        grad = (grad - spread - keep * is_target.to(share.dtype)) * column
        if loss.softcap is not None:
            grad = grad * (1 - (wide / loss.softcap).square())  # of tanh
        scores.copy_(grad.masked_fill(column == 0, 0))  # also where one is not finite
        logits[:, loss.vocab_size :] = 0
    return (losses * column).masked_fill(column == 0, 0)[:, 0]


def _block_(
    logits: Tensor, targets: Tensor, share: Tensor, loss: RowLoss, *, with_gradient: bool
) -> Tensor:
    scores = logits[:, : loss.vocab_size]
    wide = scores.to(share.dtype)
    if loss.softcap is not None:
        wide = loss.softcap * torch.tanh(wide / loss.softcap)
    at = targets[:, None]
    log_p = torch.log_softmax(wide, -1)
    target_log_p = log_p.gather(1, at)
    log_sum = wide.gather(1, at) - target_log_p  # (n, 1), log Σ exp
    keep, spread = 1 - loss.label_smoothing, loss.label_smoothing / loss.vocab_size
    losses = -keep * target_log_p
    if spread:
        losses -= spread * log_p.sum(-1, keepdim=True)
    if loss.z_loss:
        losses += loss.z_loss * log_sum.square()
    if with_gradient:
        column = share[:, None]
        factor = column * (1 + 2 * loss.z_loss * log_sum) if loss.z_loss else column
        grad = log_p.exp_().mul_(factor)
        if spread:
            grad -= spread * column
        grad.scatter_add_(1, at, -keep * column)
        if loss.softcap is not None:
            grad.mul_(1 - (wide / loss.softcap).square_())  # of tanh
        scores.copy_(grad.masked_fill_(column == 0, 0))  # also where one is not finite
        logits[:, loss.vocab_size :] = 0
    return (losses[:, 0] * share).where(share > 0, 0)  # also where an ignored row is not finite
