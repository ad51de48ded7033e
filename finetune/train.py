"""The fine-tuning loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

from finetune.config import FinetuneConfig
from finetune.devices import StepResult
from finetune.multitask import results as multitask_results
from finetune.multitask import session as multitask_session
from finetune.multitask.config import MultitaskConfig
from finetune.results import is_reported, write_results
from finetune.session import Session, start
from finetune.transfer.layers import unfreeze
from runtime import dist
from runtime.dist import Ranks
from runtime.errors import EXIT_OK, EXIT_PREEMPTED, UserError
from runtime.metrics import memory_bytes
from runtime.progress import Rate
from runtime.schedule import lr_ratio
from runtime.seed import seed_step
from runtime.signals import StopRequest
from runtime.watchdog import Watchdog

Running = Session | multitask_session.JointSession


class Way(NamedTuple):
    """How a run is built, and what is done at its end."""

    start: Callable[[Any, Ranks, Callable[[], None]], Running]
    is_reported: Callable[[Any], bool]
    write_results: Callable[[Any], None]


ONE = Way(start, is_reported, write_results)
SEVERAL = Way(
    multitask_session.start, multitask_results.is_reported, multitask_results.write_results
)


def train(
    config: FinetuneConfig | MultitaskConfig, ranks: Ranks, watchdog: Watchdog, way: Way = ONE
) -> int:
    """Train, choose the best model by the dev set and score it; returns the exit status.

    Ends after the last step, when patience is at its end, or when asked to stop. Collective.
    """
    stop = StopRequest()
    session = way.start(config, ranks, watchdog.pulse)
    if session.is_finished and way.is_reported(session):
        session.progress.say(f"already finished: see {config.run_dir / 'report.json'}")
        return EXIT_OK
    total = session.total_steps
    rate = Rate()
    stopping = False
    while not session.is_finished and not stopping:
        watchdog.beat("agree", session.step)
        # One agreement a step: whether a rank was told to stop, or failed to save.
        stops, failed = dist.sum_over_ranks([stop.check(), session.saver.failed()])
        stopping = stops > 0
        if failed:
            session.saver.wait()  # raises
        watchdog.beat("step")
        seed_step(config.run.seed, session.step, ranks.rank)
        lr = config.optim.lr * lr_ratio(config.schedule, session.step, total)
        unfreeze(session.replicas.optimizer.param_groups, session.step)
        result = session.replicas.train_step(*session.micro_batches(), lr)
        tokens = session.plan.tokens(session.step)
        session.step += 1
        session.tokens_seen += tokens
        rate.add(tokens)
        _refuse_divergence(session, result)
        if session.step == total or stopping or session.step % config.log.every_steps == 0:
            _log_step(session, result, lr, rate.read())
        if _is_due(session.step, config.log.histograms_every_steps):
            session.record_histograms()
            rate.pause_until_now()
        watchdog.beat("evaluate", session.step)
        if session.is_evaluation_due():
            session.evaluate()
            rate.pause_until_now()
        watchdog.beat("save")
        if session.is_finished or stopping or _is_due(session.step, config.checkpoint.every_steps):
            session.save()
            rate.pause_until_now()
    watchdog.beat("save")
    session.saver.wait()
    if session.is_finished:
        way.write_results(session)
    if session.log is not None:
        session.log.close()
    stop.restore()
    if not session.is_finished:
        session.progress.say(
            f"stopped after step {session.step} ({stop.reason or 'another rank was told to'}); "
            "run the same command again to go on"
        )
        return EXIT_PREEMPTED
    return EXIT_OK


def _is_due(step: int, every_steps: int) -> bool:
    return every_steps > 0 and step % every_steps == 0


def _refuse_divergence(session: Running, result: StepResult) -> None:
    """Stop before numbers that are none reach a checkpoint. Every rank sees the same result."""
    if not (abs(result.loss) < float("inf") and result.grad_norm < float("inf")):
        raise UserError(
            f"step {session.step}: the loss is {result.loss} and the gradient norm "
            f"{result.grad_norm}: training diverged; lower optim.lr or add schedule.warmup_steps, "
            "and start again in another run.dir"
        )


def _log_step(session: Running, result: StepResult, lr: float, tokens_per_second: float) -> None:
    session.record(
        loss=result.loss,
        lr=lr,
        grad_norm=result.grad_norm,
        tokens_per_second=tokens_per_second,
        memory_bytes=memory_bytes(session.ranks.device),
    )
    session.progress.update(
        session.step,
        loss=result.loss,
        lr=lr,
        **{"grad norm": result.grad_norm, "tokens/s": tokens_per_second},
    )
