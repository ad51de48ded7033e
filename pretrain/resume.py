"""Going on from a checkpoint: what must be as it was, what may change, and what is told."""

from typing import TYPE_CHECKING, Any

from pretrain.architecture import check_vocab_multiple
from pretrain.branch import BRANCH_FROM, OWN_KEYS, branch_point, is_own, key_of, origin
from runtime import dist
from runtime.checkpoint import CheckpointInfo
from runtime.checkpoint.reader import TrainingState, understood
from runtime.config import flat
from runtime.dist import Ranks
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.run_directory import newest_checkpoint, verify_together

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig
    from pretrain.session import Session


def starting_point(config: "PretrainConfig", ranks: Ranks) -> CheckpointInfo | None:
    """The newest whole checkpoint of the run, or else the one that it branches from. Collective.

    Raises UserError where the latter is damaged.
    """
    own = newest_checkpoint(config.run_dir / "checkpoints", ranks)
    source = _source(config) if own is None else None
    if source is not None and (problems := verify_together(source.path, ranks)):
        raise UserError(
            f"{BRANCH_FROM}: {problems[0]}; restore it, or name another checkpoint",
            status=EXIT_BAD_INPUT,
        )
    return own or source


def _source(config: "PretrainConfig") -> CheckpointInfo | None:
    """What the run branches from, as the main rank sees it. Collective."""
    seen = branch_point(config)
    is_branch = dist.gather_text("" if seen is None else str(seen.path))[0] != ""
    problem = f"{BRANCH_FROM}: {config.run.branch_from}: not to be seen here, or not to be taken"
    dist.raise_together(problem if is_branch and seen is None else None, EXIT_BAD_INPUT)
    return seen if is_branch else None


def restore(session: "Session", checkpoint: CheckpointInfo) -> None:
    """Continue exactly after the checkpoint's step: weights, moments, data order, counters.

    One of another run is only read: nothing counts as saved here.
    """
    key, state = key_of(session.config, checkpoint.path), TrainingState(checkpoint.path)
    if is_own(session.config, checkpoint.path):
        session.saver.trust(checkpoint)
        session.saved_step = checkpoint.step
        session.branched_from = state.values.get("branched_from")
    else:
        session.branched_from = origin(checkpoint)
    with understood(checkpoint.path):
        mixed = session.loader.load_state_dict(state.values["loader"])
        health = state.values.get("health", {})
        if session.saved_step is None:  # the source's troubles are not the branch's
            health = {k: v for k, v in health.items() if k not in ("lr_factor", "rollbacks")}
        session.health.load_state_dict(health)
        session.tokens_seen = state.values["tokens_seen"]
        session.step = state.values["step"]
        check_vocab_multiple(session.model_config, state.values["config"], key)
        _tell_changes(session, state.values["config"])
        if mixed:
            session.progress.say(mixed)
        session.engine.load_loss_scale_state(state.values.get("loss_scale", {}))
    session.engine.load_optimizer_slices(state.read, state.values["optimizer_steps"])


def _tell_changes(session: "Session", stored: dict[str, Any]) -> None:
    """Say which settings the run goes on with that its first part did not have."""
    before, now = flat(stored), flat(session.config.model_dump(mode="json"))
    names = before.keys() | now.keys()
    if session.saved_step is None:
        names -= OWN_KEYS
    for name in sorted(names):
        if before.get(name) != now.get(name):
            session.progress.say(f"changed: {name} was {before.get(name)}, now {now.get(name)}")
