"""The pretraining loop."""

from pretrain.config import PretrainConfig
from pretrain.objectives.batch import Counts, count, split, weighted
from pretrain.recovery import check_replicas, respond
from pretrain.session import Session, start
from pretrain.tally import Tally
from runtime import dist
from runtime.dist import Ranks
from runtime.engine import StepResult
from runtime.errors import EXIT_OK, EXIT_PREEMPTED
from runtime.health import Slow
from runtime.metrics import memory_bytes
from runtime.pace import Pace
from runtime.progress import Rate
from runtime.schedule import lr_ratio
from runtime.seed import seed_step
from runtime.signals import StopRequest
from runtime.watchdog import Watchdog

_NOTABLE_WAIT = 0.05  # share of the time that goes to waiting for data


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
    rate = Rate(lambda: session.loader.waited_s)
    tally = Tally(has_pairs=session.objective.head == "pretraining")
    pace = Pace(config.health, ranks)
    stopping = False
    while session.step < total and not stopping:
        watchdog.beat("data", session.step)
        if _is_due(session.step, config.health.checksum_every_steps) and check_replicas(session):
            batches = iter(session.loader)
        session.data_step = session.loader.step
        with pace.own_work:
            batch = next(batches)
        watchdog.beat("agree")
        # One agreement a step: what all ranks hold, how long each worked, whether one was told to
        # stop, or failed to save.
        *sums, stops, failed = dist.sum_over_ranks(
            [*pace.take(), *count(batch), stop.check(), session.saver.failed()]
        )
        held, stopping = Counts(*sums[ranks.world_size :]), stops > 0
        if failed:
            session.saver.wait()  # raises
        _tell_slow_rank(session, pace.compare(sums[: ranks.world_size]))
        watchdog.beat("step")
        seed_step(config.run.seed, session.step, ranks.rank)
        lr = config.optim.lr * lr_ratio(config.schedule, session.step, total)
        lr *= session.health.lr_factor
        is_last = session.step + 1 == total or stopping
        saves = is_last or _is_due(session.step + 1, config.checkpoint.every_steps)
        logs = saves or _is_due(session.step + 1, config.log.every_steps)
        result = session.engine.train_step(
            split(batch, micro_batch_size, ranks.device),
            weighted(held),
            lr,
            accept=session.health.accept,
            measure_update=logs,
        )
        session.step += 1
        session.tokens_seen += int(held.tokens)
        rate.add(int(held.tokens))
        tally.add(held, session.positions)
        pace.add(result.own_s)
        session.tell_compilation()
        if logs:
            _log_step(session, result, lr, rate, tally)
        verdict = session.judge(result)
        if verdict is not None and respond(session, verdict, result):
            batches = iter(session.loader)
            rate.pause_until_now()
            tally.read()
            continue
        watchdog.beat("evaluate", session.step)
        if _is_due(session.step, config.evaluate.every_steps, at_end=session.step == total):
            _evaluate(session)
            rate.pause_until_now()
        if _is_due(session.step, config.log.histograms_every_steps):
            session.record_histograms()
            rate.pause_until_now()
        watchdog.beat("save")
        if saves and (session.step == total or not session.health.is_in_doubt):
            if config.health.checksum_every_steps and check_replicas(session):
                batches = iter(session.loader)
                continue  # what differs must not be saved
            session.save()
            rate.pause_until_now()
    watchdog.beat("save")
    session.close()
    if session.step < total:
        session.progress.say(
            f"stopped after step {session.step} ({stop.reason or 'another rank was told to'}); "
            "run the same command again to go on"
        )
        return EXIT_PREEMPTED
    return EXIT_OK


def _is_due(step: int, every_steps: int, *, at_end: bool = False) -> bool:
    return every_steps > 0 and (step % every_steps == 0 or at_end)


def _tell_slow_rank(session: Session, slow: Slow | None) -> None:
    if slow is not None:
        session.note(
            "slow_rank",
            f"rank {slow.rank} is slow: its own work takes {slow.own_s:.3g} s a step, "
            f"{slow.others_s:.3g} s on the others, which wait for it",
            **slow._asdict(),
        )


def _evaluate(session: Session) -> None:
    """Record the scores on the validation split, and what the model writes. Collective."""
    assert session.validation is not None
    scores = session.validation(session.engine, session.beat)
    session.record(**scores, **session.sources())
    told = ", ".join(
        f"{name.removeprefix('valid_').replace('_', ' ')} {value:.4f}"
        for name, value in scores.items()
    )
    session.progress.say(f"step {session.step}: validation {told}")
    session.record_samples()


def _log_step(session: Session, result: StepResult, lr: float, rate: Rate, tally: Tally) -> None:
    """Record what the last step measured."""
    loss, grad_norm = result.loss, float(result.grad_norm)
    tokens_per_second = rate.read()  # after the losses: until then a GPU may still be at work
    mfu = session.mfu(tokens_per_second, tally.predicted_fraction)
    session.record(
        loss=loss,
        lr=lr,
        grad_norm=grad_norm,
        update_ratio=result.update_ratio,
        tokens_per_second=tokens_per_second,
        memory_bytes=memory_bytes(session.ranks.device),
        data_wait=rate.waiting,
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
        **({"data wait": rate.waiting} if rate.waiting >= _NOTABLE_WAIT else {}),
    )
