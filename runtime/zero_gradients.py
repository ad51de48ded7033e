"""What ZeRO-1 and -2 look at in gradients before an update, in fewer passes over memory.

DeepSpeed 0.19.8 looks for inf and NaN in each gradient, twice, and then converts each to fp64 for
its norm: 22 bytes are read and written for a number in bf16. A norm is not finite where a gradient
is not, which DeepSpeed checks as well, so reading each number once, 2 bytes, says both.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from runtime.dist import Ranks

# Numbers whose squares a CPU adds up one after the other in fp32: a million of them would lose a
# thousandth. A GPU's kernel takes short stretches by itself.
_STRETCH = 1 << 14
_COPIED = 1 << 20  # numbers that are converted to fp32 at once

_REPLACED = ("get_grad_norm_direct", "_check_overflow", "average_tensor")


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
    # Where communication overlaps, averaging also waits for what is still being written.
    if stage == 1 and ranks.world_size == 1 and not optimizer.overlap_comm:
        optimizer.average_tensor = _is_average_already


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
    for part in (part for g in gradients for part in torch.split(g.flatten(), _COPIED)):
        whole = len(part) // _STRETCH * _STRETCH
        rows = part[:whole].view(-1, _STRETCH).float()
        found.append(torch.linalg.vector_norm(rows, dim=1))
        found.append(torch.linalg.vector_norm(part[whole:].float()).view(1))
    return torch.cat(found)


def _leave_to_the_norm(*_: Any) -> None:
    """Nothing: `step` skips the update where the norm is not finite, too."""


def _is_average_already(*_: Any) -> None:
    """Nothing: with one rank its gradients are everyone's."""
