"""A batch that grows: planned for its final size, and told. Imports no torch."""

from typing import Any

from data_prep.batch_sizes import BatchSizes, rises
from launch.plan.search import Ask
from runtime.errors import EXIT_BAD_INPUT, UserError


def sizes(ask: Ask) -> BatchSizes:
    """Sequences of each step: the config's ramp, then the batch that is planned."""
    return BatchSizes(ask.global_batch_size, ask.subject.ramp)


def refuse_unshared(ask: Ask) -> None:
    """Raise UserError (status 2) for a ramp that so many GPUs, or this batch, cannot have."""
    if not rises(sizes(ask)):
        raise UserError(
            f"batch.ramp: {_stages(ask)}, expected rising steps and rising sizes; change it, or "
            "give a larger --global-batch-size",
            status=EXIT_BAD_INPUT,
        )
    for _, size in ask.subject.ramp:
        if size % ask.gpus:
            raise UserError(
                f"batch.ramp: {size:,} sequences cannot be shared out evenly among {ask.gpus:,} "
                "GPUs; change it, or give another --gpus",
                status=EXIT_BAD_INPUT,
            )


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
    stages = [{"until_step": u, "global_batch_size": size} for u, size in ask.subject.ramp]
    return {"stages": stages, "tokens": min(tokens, _before(ask)), "note": note(ask, tokens)}


def _before(ask: Ask) -> int:
    """Tokens until the batch has its final size."""
    return sizes(ask).first(ask.subject.ramp[-1][0]) * ask.seq_len


def _stages(ask: Ask) -> str:
    told = ", ".join(f"{size:,} until step {until:,}" for until, size in ask.subject.ramp)
    return f"{told}, then {ask.global_batch_size:,} sequences a step"
