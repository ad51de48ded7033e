"""What ZeRO-1 and -2 look at in gradients before an update, in fewer passes over memory.

DeepSpeed 0.19.8 looks for inf and NaN in each gradient, twice, and then converts each to fp64 for
its norm: 22 bytes are read and written for a number in bf16. A norm is not finite where a gradient
is not, which DeepSpeed checks as well, so reading each number once, 2 bytes, says both. What a rank
alone neither sends nor averages is not copied either.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from runtime.dist import Ranks

# Numbers whose squares a CPU adds up one after the other in fp32: a million of them would lose a
# thousandth. A GPU's kernel takes short stretches by itself.
_STRETCH = 1 << 14
_COPIED = 1 << 20  # numbers that are converted to fp32 at once
# Numbers that are worth an operation of their own: one costs a CPU tens of microseconds, in which
# a GPU moves many more.
_WORTH = {"cpu": 1 << 16}
_WORTH_ELSEWHERE = 1 << 23

_REPLACED = (
    "get_grad_norm_direct",
    "_check_overflow",
    "average_tensor",
    "copy_grads_in_partition",
    "get_gradient_for_reduction",  # called, not replaced
)


def attach(engine: Any, stage: int, ranks: Ranks) -> None:
    """Take the place of DeepSpeed's own passes, of this engine alone; the results are the same.

    With offloading DeepSpeed measures gradients on their way to the host, which is left as it is.
    """
    optimizer = engine.optimizer
    if stage not in (1, 2) or optimizer.cpu_offload:
        return
    if not all(hasattr(type(optimizer), name) for name in _REPLACED):
        return  # another DeepSpeed: its own passes are slower and as right
    optimizer.get_grad_norm_direct = partial(_norm, optimizer, ranks)
    optimizer._check_overflow = _leave_to_the_norm
    # Where communication overlaps, averaging also waits for what is still being written; with sums
    # in another precision it is what adds to them.
    is_direct = not (optimizer.overlap_comm or optimizer.use_grad_accum_attribute)
    if ranks.world_size == 1 and is_direct:
        optimizer.average_tensor = _is_average_already
        optimizer.copy_grads_in_partition = partial(_keep, optimizer)


def _norm(optimizer: Any, ranks: Ranks, gradients: Sequence[torch.Tensor], *_: Any) -> torch.Tensor:
    """‖gradients‖ of all ranks in fp32; −1, DeepSpeed's mark, where it is not finite. Collective.

    gradients: those of this rank's partition, and zeros that fill it up.
    """
    total = torch.zeros((), device=ranks.device)
    if gradients:
        on_cpu = ranks.device.type == "cpu"
        norms = _norms_on_cpu(gradients) if on_cpu else _norms(gradients)
        total = torch.linalg.vector_norm(norms).square()
    if ranks.world_size > 1:
        torch.distributed.all_reduce(total, group=optimizer.dp_process_group)
    norm = total.sqrt()
    return torch.where(norm.isfinite(), norm, -1.0)


def _norms(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(torch._foreach_norm(list(gradients), 2, dtype=torch.float32))


def _norms_on_cpu(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of stretches of them; many in one operation, for which it takes all its threads."""
    found = []
    for part in (part for flat in joined(gradients) for part in torch.split(flat, _COPIED)):
        whole = len(part) // _STRETCH * _STRETCH
        for rows in (part[:whole].view(-1, _STRETCH), part[None, whole:]):
            found.append(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32))
    return torch.cat(found)


def joined(gradients: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Gradients as vectors, in their order: large ones as they lie, small ones together."""
    small: list[torch.Tensor] = []
    count = 0
    for gradient in gradients:
        flat = gradient.detach().reshape(-1)
        worth = _WORTH.get(flat.device.type, _WORTH_ELSEWHERE)
        is_large = len(flat) >= worth
        if not is_large:
            small.append(flat)
            count += len(flat)
        if small and (is_large or count >= worth):
            yield torch.cat(small)
            small, count = [], 0
        if is_large:
            yield flat
    if small:
        yield torch.cat(small)


def _leave_to_the_norm(*_: Any) -> None:
    """Nothing: `step` skips the update where the norm is not finite, too."""


def _is_average_already(*_: Any) -> None:
    """Nothing: with one rank its gradients are everyone's."""


def _keep(optimizer: Any, parameter: Any, *_: Any) -> None:
    """Leave a gradient where autograd made it; of one in the bucket, used again, keep a copy."""
    if parameter.numel() <= optimizer.reduce_bucket_size:
        gradient = optimizer.get_gradient_for_reduction(parameter)
        gradient.data = gradient.data.clone()
