"""Going on from a checkpoint: what must be as it was, what may change, and what is told."""

from typing import TYPE_CHECKING, Any

from pretrain.architecture import check_vocab_multiple
from runtime.checkpoint import CheckpointInfo
from runtime.checkpoint.reader import TrainingState, understood
from runtime.config import flat

if TYPE_CHECKING:
    from pretrain.session import Session


def restore(session: "Session", checkpoint: CheckpointInfo) -> None:
    """Continue exactly after the checkpoint's step: weights, moments, data order, counters."""
    session.saver.trust(checkpoint)
    state = TrainingState(checkpoint.path)
    with understood(checkpoint.path):
        mixed = session.loader.load_state_dict(state.values["loader"])
        session.health.load_state_dict(state.values.get("health", {}))
        session.tokens_seen = state.values["tokens_seen"]
        session.step = session.saved_step = state.values["step"]
        check_vocab_multiple(session.model_config, state.values["config"])
        _tell_changes(session, state.values["config"])
        if mixed:
            session.progress.say(mixed)
        session.engine.load_loss_scale_state(state.values.get("loss_scale", {}))
    session.engine.load_optimizer_slices(state.read, state.values["optimizer_steps"])


def _tell_changes(session: "Session", stored: dict[str, Any]) -> None:
    """Say which settings the run goes on with that its first part did not have."""
    before, now = flat(stored), flat(session.config.model_dump(mode="json"))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            session.progress.say(f"changed: {name} was {before.get(name)}, now {now.get(name)}")
