"""The pretraining loop."""

import math

from pretrain.config import PretrainConfig
from pretrain.objectives.batch import Counts, count, split, weighted
from pretrain.session import Session, start
from pretrain.tally import Tally
from runtime import dist
from runtime.dist import Ranks
from runtime.engine import StepResult
from runtime.errors import EXIT_OK, EXIT_PREEMPTED, UserError
from runtime.metrics import Rate, memory_bytes
from runtime.schedule import lr_ratio
from runtime.seed import seed_step
from runtime.signals import StopRequest
from runtime.watchdog import Watchdog


def train(config: PretrainConfig, ranks: Ranks, watchdog: Watchdog) -> int:
    """Train to the last step, or until asked to stop; returns the exit status. Collective."""
    stop = StopRequest()
    session = start(config, ranks, beat=watchdog.pulse)
    total, micro_batch_size = config.total_steps, config.micro_batch_size(ranks.world_size)
    if session.step >= total:
        session.loader.close()
        session.progress.say(f"already finished: {session.step} of {total} steps")
        return EXIT_OK
    batches = iter(session.loader)
    rate, tally = Rate(), Tally(has_pairs=session.objective.head == "pretraining")
    stopping = False
    while session.step < total and not stopping:
        watchdog.beat("data", session.step)
        batch = next(batches)
        watchdog.beat("agree")
        # One agreement a step: what all ranks hold, whether one was told to stop or failed to save.
        *sums, stops, failed = dist.sum_over_ranks(
            [*count(batch), stop.check(), session.saver.failed()]
        )
        held, stopping = Counts(*sums), stops > 0
        if failed:
            session.saver.wait()  # raises
        watchdog.beat("step")
        seed_step(config.run.seed, session.step, ranks.rank)
        lr = config.optim.lr * lr_ratio(config.schedule, session.step, total)
        is_last = session.step + 1 == total or stopping
        saves = is_last or _is_due(session.step + 1, config.checkpoint.every_steps)
        logs = saves or _is_due(session.step + 1, config.log.every_steps)
        result = session.engine.train_step(
            split(batch, micro_batch_size, ranks.device), weighted(held), lr, measure_update=logs
        )
        session.step += 1
        session.tokens_seen += int(held.tokens)
        rate.add(int(held.tokens))
        tally.add(held, config.tokens_per_step)
        _count_skipped(session, result)
        if logs:
            _log_step(session, result, lr, rate, tally)
        watchdog.beat("evaluate", session.step)
        if _is_due(session.step, config.evaluate.every_steps, at_end=session.step == total):
            _evaluate(session)
            rate.pause_until_now()
        watchdog.beat("save")
        if saves:
            session.save()
            rate.pause_until_now()
    watchdog.beat("save")
    session.saver.wait()
    session.loader.close()
    if session.log is not None:
        session.log.close()
    if session.step < total:
        session.progress.say(
            f"stopped after step {session.step} ({stop.reason or 'another rank was told to'}); "
            "run the same command again to go on"
        )
        return EXIT_PREEMPTED
    return EXIT_OK


def _is_due(step: int, every_steps: int, *, at_end: bool = False) -> bool:
    return every_steps > 0 and (step % every_steps == 0 or at_end)


def _count_skipped(session: Session, result: StepResult) -> None:
    """Give up on a run whose gradients overflow step after step: it would train nothing."""
    session.skipped_in_a_row = 0 if result.applied else session.skipped_in_a_row + 1
    limit = session.config.health.max_skipped_steps
    if session.skipped_in_a_row >= limit:
        raise UserError(
            f"step {session.step}: the gradients of {limit} steps in a row were not finite "
            "(health.max_skipped_steps); lower optim.lr, or use precision: bf16 or fp32"
        )


def _evaluate(session: Session) -> None:
    """Record the scores on the validation split. Collective."""
    assert session.validation is not None
    scores = session.validation(session.engine)
    session.record(**scores)
    told = ", ".join(
        f"{name.removeprefix('valid_').replace('_', ' ')} {value:.4f}"
        for name, value in scores.items()
    )
    session.progress.say(f"step {session.step}: validation {told}")


def _log_step(session: Session, result: StepResult, lr: float, rate: Rate, tally: Tally) -> None:
    """Record what the last step measured. Collective: the loss is summed over the ranks."""
    (loss,) = dist.sum_over_ranks([float(result.loss)])
    grad_norm = float(result.grad_norm)
    tokens_per_second = rate.read()  # after the losses: until then a GPU may still be at work
    if not math.isfinite(loss) or (result.applied and not math.isfinite(grad_norm)):
        # Before a checkpoint holds such weights, and the good one is pruned.
        raise UserError(
            f"step {session.step}: loss {loss}, gradient norm {grad_norm}: training diverged; "
            "lower optim.lr or add schedule.warmup_steps, and run again: it goes on from the last "
            "checkpoint"
        )
    mfu = session.mfu(tokens_per_second, tally.predicted_fraction)
    session.record(
        loss=loss,
        lr=lr,
        grad_norm=grad_norm,
        update_ratio=result.update_ratio,
        tokens_per_second=tokens_per_second,
        memory_bytes=memory_bytes(session.ranks.device),
        **mfu,
        **tally.read(),
        **({} if result.applied else {"skipped": True}),
    )
    session.progress.update(
        session.step,
        loss=loss,
        lr=lr,
        **{"grad norm": grad_norm, "tokens/s": tokens_per_second},
        mfu=mfu["mfu"],
    )
