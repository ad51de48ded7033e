"""A batch that grows: planned for its final size, and told. Imports no torch."""

from typing import Any

from launch.plan.search import Ask
from pretrain.config import check_batches
from pretrain.sections import Batch
from runtime.errors import EXIT_BAD_INPUT, UserError


def batch(ask: Ask) -> Batch:
    """The config's ramp, then the batch that is planned."""
    return Batch(global_batch_size=ask.global_batch_size, ramp=ask.subject.ramp)


def refuse_unshared(ask: Ask) -> None:
    """Raise UserError (status 2) for a ramp that so many GPUs, or this batch, cannot have."""
    for problem in check_batches(batch(ask), ask.gpus):
        raise UserError(f"{problem.key}: {problem.message}", status=EXIT_BAD_INPUT)


def note(ask: Ask, tokens: int) -> str | None:
    """What is planned of a batch that grows; None where it does not."""
    if not ask.subject.ramp:
        return None
    share = min(1.0, _before(ask) / tokens)
    return (
        f"batch.ramp: {_stages(ask)}: planned for {ask.global_batch_size:,}; "
        f"{share:.1%} of the tokens come in smaller steps before, each token of which costs more"
    )


def record(ask: Ask, tokens: int) -> dict[str, Any] | None:
    """The same as JSON holds it."""
    if not ask.subject.ramp:
        return None
    stages = [stage.model_dump() for stage in ask.subject.ramp]
    return {"stages": stages, "tokens": min(tokens, _before(ask)), "note": note(ask, tokens)}


def _before(ask: Ask) -> int:
    """Tokens until the batch has its final size."""
    return batch(ask).sizes.first(ask.subject.ramp[-1].until_step) * ask.seq_len


def _stages(ask: Ask) -> str:
    told = ", ".join(f"{size:,} until step {until:,}" for until, size in batch(ask).sizes.ramp)
    return f"{told}, then {ask.global_batch_size:,} sequences a step"
