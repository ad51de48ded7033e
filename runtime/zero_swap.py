"""What ZeRO-3 keeps on disk (Rajbhandari et al. 2021, "ZeRO-Infinity"), in memory for a while.

DeepSpeed swaps a sub-group's master weights and moments in for its step, and a parameter's part
for its gathering. Whoever reads or writes them between steps does it here, one at a time.
"""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from runtime import dist
from runtime.dist import Ranks
from runtime.errors import EXIT_BAD_INPUT


@contextlib.contextmanager
def present(engine: Any, sub_group: int, *, is_written: bool = False) -> Iterator[None]:
    """Have a sub-group's master weights and moments in memory; without effect where they are.

    is_written: they are written back at the end.
    """
    optimizer = engine.optimizer
    is_swapped = getattr(optimizer, "swap_optimizer", False)
    # What is smaller than a block of the disk's stays in memory.
    if not is_swapped or not optimizer._swappable_optimizer_subgroup(sub_group):
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(sub_group)
    try:
        yield
    finally:
        if is_written:
            optimizer._writeback_swap_state(sub_group, True, False)
        else:
            optimizer._release_swap_buffers(sub_group)


@contextlib.contextmanager
def own_part(parameter: Any) -> Iterator[torch.Tensor]:
    """Return this rank's part of a parameter that ZeRO-3 has cut, in memory."""
    swapper = parameter.nvme_swapper
    is_absent = swapper is not None and parameter.ds_tensor.status.name == "NOT_AVAILABLE"
    if not is_absent:
        yield parameter.ds_tensor
        return
    swapper.swap_in([parameter], async_op=False)
    try:
        yield parameter.ds_tensor
    finally:
        swapper.remove_partition_and_release_buffers([parameter])


def build_async_io(build: Callable[[], Any], ranks: Ranks) -> None:
    """Have DeepSpeed's async_io compiled, by one rank of a machine for all of it. Collective.

    It takes a minute or two, once. Raises UserError where it can't be built.
    """
    # ninja is a dependency of DeepSpeed's: it lies beside this Python, active or not.
    beside = str(Path(sys.executable).parent)
    if beside not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([beside, os.environ["PATH"]])
    error = None
    for builds_now in (True, False):
        if (ranks.local_rank == 0) == builds_now:
            try:
                with _alone() if builds_now else contextlib.nullcontext():
                    build()
            except (RuntimeError, OSError, ImportError) as problem:
                told = str(problem).strip().splitlines() or ["no reason given"]
                error = (
                    f"parallel.offload_to: nvme: DeepSpeed's async_io cannot be built: {told[0]}; "
                    "install g++ and libaio-dev, or write cpu"
                )
        dist.raise_together(error, EXIT_BAD_INPUT)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Build while no other run of ours does, after what a killed one has left.

    torch waits without an end for a lock file whose owner may be long dead.
    """
    from torch.utils import cpp_extension

    directory = Path(cpp_extension._get_build_directory("async_io", False)).parent
    with (directory / ".building").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for name in ("async_io", "pin_memory"):
            (directory / name / "lock").unlink(missing_ok=True)
        yield


def clear_away(directory: str, ranks: Ranks) -> None:
    """Delete this rank's swapped tensors when the process group ends: no run goes on from them."""

    def delete() -> None:
        for path in Path(directory).glob(f"zero_stage_3/*/rank{ranks.rank}"):
            shutil.rmtree(path, ignore_errors=True)
        for path in (*Path(directory).glob("zero_stage_3/*"), Path(directory, "zero_stage_3")):
            with contextlib.suppress(OSError):  # not empty: another rank is still at it
                path.rmdir()
        with contextlib.suppress(OSError):
            Path(directory).rmdir()

    dist.before_shutdown(delete)
