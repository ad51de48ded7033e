"""A run that begins from a checkpoint of another one: what must fit, and what is told. Torch-free.

One long run at a constant rate serves several decays (Hägele et al. 2024, "Scaling Laws and
Compute-Optimal Training Beyond Fixed Training Durations"): each is a branch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.sections import Batch
from runtime.checkpoint import CheckpointInfo, list_checkpoints
from runtime.checkpoint.format import (
    MANIFEST,
    TRAINING,
    checkpoints_in,
    hash_file,
    read_json,
    step_of,
)
from runtime.config import Problem
from runtime.schedule import lr_ratio, wsd_decay
from runtime.sections import Schedule

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig

BRANCH_FROM = "run.branch_from"
# Settings in which a branch differs from its source by nature.
OWN_KEYS = frozenset({"run.name", "run.dir", BRANCH_FROM})
_ODD = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what a strange file leads to


def branch_point(config: "PretrainConfig") -> CheckpointInfo | None:
    """The checkpoint that a run begins from; None where none is named, or the run has its own."""
    if config.run.branch_from is None or list_checkpoints(config.run_dir / "checkpoints"):
        return None
    path = Path(config.run.branch_from)
    step = step_of(path)
    return CheckpointInfo(step, path) if step is not None and path.is_dir() else None


def is_own(config: "PretrainConfig", checkpoint: Path) -> bool:
    """Whether a checkpoint is one of the run itself."""
    return checkpoint.resolve().parent == (config.run_dir / "checkpoints").resolve()


def key_of(config: "PretrainConfig", checkpoint: Path) -> str:
    """The key that named a checkpoint, for what is said of it."""
    return "run.dir" if is_own(config, checkpoint) else BRANCH_FROM


def origin(checkpoint: CheckpointInfo) -> dict[str, Any]:
    """What a branch stores of where it came from: its manifest's hash names every byte of it."""
    return {
        "checkpoint": str(checkpoint.path.resolve()),
        "step": checkpoint.step,
        "manifest_sha256": hash_file(checkpoint.path / MANIFEST),
    }


def check_branch(config: "PretrainConfig") -> Iterator[Problem]:
    """Whether there is such a checkpoint, and whether the run can go on from it."""
    if config.run.branch_from is None:
        return
    path = Path(config.run.branch_from)
    if is_own(config, path):
        yield Problem(
            BRANCH_FROM,
            f"{path} is a checkpoint of this very run; choose another run.name for the branch",
        )
        return
    if list_checkpoints(config.run_dir / "checkpoints"):
        return  # the branch goes on from its own, and its source may be gone
    checkpoint = branch_point(config)
    if checkpoint is None:
        steps = list_checkpoints(checkpoints_in(path)) or list_checkpoints(path.parent)
        mend = steps[-1].path if steps else "one of a run, as runs/NAME/checkpoints/step_00001000"
        yield Problem(BRANCH_FROM, f"{path} is no checkpoint; write {mend}")
        return
    try:
        optimizer = stored_config(path)["optim"]["name"]
    except _ODD as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        yield Problem(
            BRANCH_FROM,
            f"{path / TRAINING / 'state.json'}: not as a pretraining run writes it ({what}); name "
            "another checkpoint",
        )
        return
    if checkpoint.step >= config.total_steps:
        yield Problem(
            BRANCH_FROM,
            f"{path} is of step {checkpoint.step:,}, and the run ends at step "
            f"{config.total_steps:,}; raise {'steps' if config.steps else 'tokens'}, or name an "
            "earlier checkpoint",
        )
    if optimizer != config.optim.name:
        yield Problem(
            "optim.name",
            f"{config.optim.name} cannot go on with the moments of {optimizer}, which {path} "
            f"holds; write {optimizer}, or name another checkpoint",
        )


def stored_config(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained with. Raises as reading and finding them does."""
    found: dict[str, Any] = read_json(checkpoint / TRAINING / "state.json")["config"]
    return found


def rate_notes(config: "PretrainConfig", stored: dict[str, Any], step: int) -> Iterator[str]:
    """Where the learning rate jumps from what the source ended with to what the branch begins with.

    stored: the source's config. step: that of its checkpoint.
    """
    try:
        schedule, lr = Schedule.model_validate(stored["schedule"]), float(stored["optim"]["lr"])
        sizes = Batch.model_validate(stored["batch"]).sizes
        total = stored["steps"] or sizes.steps(stored["tokens"] // stored["data"]["seq_len"])
        was = lr * lr_ratio(schedule, step - 1, total) if step else 0.0
    except _ODD:
        return  # of a version that wrote another config: it cannot be told
    own, steps = config.schedule, config.total_steps
    now = config.optim.lr * lr_ratio(own, step, steps)
    if was < lr and step > schedule.warmup_steps and now > was:
        yield (
            f"the learning rate jumps up, from {was:.3g} to {now:.3g}: the source's "
            f"{schedule.kind} schedule had let it fall before step {step:,}; a checkpoint from "
            "before that would go on smoothly"
        )
    decay = wsd_decay(own, steps)
    late = step - (steps - decay)
    if own.kind == "wsd" and late > 0 and now < was:
        yield (
            f"the learning rate falls at once, from {was:.3g} to {now:.3g}: the decay of "
            f"{decay:,} steps began {late:,} before the checkpoint; write schedule.decay_steps: "
            f"{steps - step}, or let the run end later"
        )
