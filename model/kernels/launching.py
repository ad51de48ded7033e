"""How a Triton kernel is launched: on which devices, by how many warps and programs.

Like each file with a kernel, this one imports triton, so the model imports it only where
`Transformer.set_kernels` asks for kernels.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

IS_INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1: on a CPU, for tests
# Fused multiply-adds, as nvcc has them. Said here because Triton 3.10 changes its default.
OPTIONS = {"enable_fp_fusion": True}
_ELEMENTS_PER_THREAD = 8  # 16 bytes of bf16, the widest access
_ELEMENTS_PER_PROCESSOR = 8192  # of 32 warps: a backward program holds many registers
_LEAST_ROWS = 8  # of a program that sums over rows, so that its sums cost little beside them


def check_device(x: Tensor) -> None:
    """Refuse a tensor that a kernel cannot read. Raises ValueError."""
    if x.device.type != "cuda" and not IS_INTERPRETED:
        raise ValueError(
            f"kernels: got a tensor on {x.device}, expected a GPU; call set_kernels('torch')"
        )


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that sums over elements of x are taken in: fp32, or fp64 for fp64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def compute_type(x: Tensor) -> tl.dtype:
    """Return Triton's name of `statistics_dtype`."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def warps_for(elements: int) -> int:
    """Return the warps of a program that holds so many elements of each tensor, 1 to 16."""
    return min(max(elements // (32 * _ELEMENTS_PER_THREAD), 1), 16)


def persistent_programs(device: torch.device, rows: int, elements: int) -> int:
    """Return how many programs share the rows: as many as run at once, each with some rows.

    elements: of each tensor in a program. A function of the device and the shape alone: it decides
    the order in which sums are taken.
    """
    at_once = _processors(device) * min(max(_ELEMENTS_PER_PROCESSOR // elements, 1), 32)
    return max(min(at_once, triton.cdiv(rows, _LEAST_ROWS)), 1)


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
