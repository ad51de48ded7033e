"""Going on from a checkpoint: what must be as it was, what may change, and what is told."""

from typing import TYPE_CHECKING, Any

from model.config import ModelConfig
from model.hf import CheckpointError, read_config
from runtime.checkpoint import CheckpointInfo
from runtime.checkpoint.reader import TrainingState, understood
from runtime.config import flat
from runtime.errors import EXIT_BAD_INPUT, UserError

if TYPE_CHECKING:
    from pretrain.session import Session


def check_architecture(wanted: ModelConfig, checkpoint: CheckpointInfo) -> None:
    """Raise UserError, with the differences, for a checkpoint of another model."""
    try:
        stored = read_config(checkpoint.path).model_dump()
    except CheckpointError as error:
        raise UserError(
            f"{error}; restore the file, or choose another run.dir", status=EXIT_BAD_INPUT
        ) from None
    # What a checkpoint does not say, or what may change from one stretch of a run to the next.
    free = {"dropout", "init_std", "mup_base_width", "num_labels", "id2label", "pad_token_id"}
    free.add("vocab_multiple")  # compared with the run's own config, once that is read
    different = [k for k, v in wanted.model_dump().items() if k not in free and stored[k] != v]
    if different:
        listed = ", ".join(f"model.{k}: {stored[k]} → {getattr(wanted, k)}" for k in different)
        raise UserError(
            f"{checkpoint.path} is of another architecture ({listed}); "
            "restore the config, or choose another run.dir",
            status=EXIT_BAD_INPUT,
        )


def restore(session: "Session", checkpoint: CheckpointInfo) -> None:
    """Continue exactly after the checkpoint's step: weights, moments, data order, counters."""
    session.saver.trust(checkpoint)
    state = TrainingState(checkpoint.path)
    with understood(checkpoint.path):
        mixed = session.loader.load_state_dict(state.values["loader"])
        session.health.load_state_dict(state.values.get("health", {}))
        session.tokens_seen = state.values["tokens_seen"]
        session.step = session.saved_step = state.values["step"]
        _check_vocab_multiple(session.model_config, state.values["config"])
        _tell_changes(session, state.values["config"])
        if mixed:
            session.progress.say(mixed)
        session.engine.load_loss_scale_state(state.values.get("loss_scale", {}))
    session.engine.load_optimizer_slices(state.read, state.values["optimizer_steps"])


def _check_vocab_multiple(wanted: ModelConfig, stored: dict[str, Any]) -> None:
    multiple = stored["model"].get("vocab_multiple") or 1
    if multiple != wanted.vocab_multiple:
        raise UserError(
            f"model.vocab_multiple: got {wanted.vocab_multiple}, expected {multiple}, with which"
            " the run was started; restore it, or choose another run.dir",
            status=EXIT_BAD_INPUT,
        )


def _tell_changes(session: "Session", stored: dict[str, Any]) -> None:
    """Say which settings the run goes on with that its first part did not have."""
    before, now = flat(stored), flat(session.config.model_dump(mode="json"))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            session.progress.say(f"changed: {name} was {before.get(name)}, now {now.get(name)}")
