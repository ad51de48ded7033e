"""Which checkpoints are kept. Torch-free."""

import shutil
from collections.abc import Callable
from pathlib import Path

from runtime.checkpoint.format import CheckpointInfo, list_checkpoints, verify

LEAST_VERIFIED = 2


def to_delete(
    root: Path,
    keep_last: int,
    keep_every: int = 0,
    *,
    is_whole: Callable[[CheckpointInfo], bool] = lambda info: not verify(info.path),
) -> list[CheckpointInfo]:
    """Those beyond the newest `keep_last` (0 keeps all) and the multiples of `keep_every`.

    Two whole ones are always among what stays: where `keep_last` would leave fewer, older ones
    stay too. Nothing is verified unless something is to be deleted.
    """
    found = list_checkpoints(root)
    kept = found[-keep_last:] if keep_last else found
    kept += [info for info in found[: -len(kept)] if keep_every and info.step % keep_every == 0]
    surplus = [info for info in found if info not in kept]
    if not surplus:
        return []
    whole = 0
    for info in reversed(found):
        if whole == LEAST_VERIFIED:
            return surplus
        # A damaged one goes when its turn comes, whole ones older than it take its place.
        if is_whole(info):
            whole += 1
            surplus = [other for other in surplus if other != info]
    return surplus if whole == LEAST_VERIFIED else []


def delete(info: CheckpointInfo) -> None:
    """Delete a checkpoint. Killed on the way, what is left of it is never taken for one."""
    doomed = info.path.with_name(f".old_{info.path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    shutil.rmtree(info.path.rename(doomed))
