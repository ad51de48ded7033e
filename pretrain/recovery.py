"""What a run does about a step that went wrong, and about a rank whose memory did."""

from data_prep.naming import name_documents
from pretrain.resume import restore, starting_point
from pretrain.session import Session
from runtime.engine import StepResult
from runtime.errors import UserError
from runtime.health import Verdict

_MEND = "lower optim.lr or add schedule.warmup_steps"
_TOLD = {
    "log": "written down alone (health.on_spike)",
    "skip": "step skipped, weights unchanged",
    "lower_lr": "step skipped, learning rate halved",
    "roll_back": "going back to the last checkpoint",
    "give_up": "ending the run",
}


def respond(session: Session, verdict: Verdict, result: StepResult) -> bool:
    """Do what a verdict says; returns whether the run went back to a checkpoint. Collective.

    Raises UserError where it can't, or has done so often enough.
    """
    loader = session.loader
    what = "loss spike" if verdict.kind == "spike" else "not finite"
    grad_norm = float(result.grad_norm)
    found = f"{what}: loss {result.loss:.4g}, gradient norm {grad_norm:.4g}"
    session.note(
        verdict.kind,
        f"{found}; {_TOLD[verdict.action]}",
        action=verdict.action,
        loss=result.loss,
        grad_norm=grad_norm,
        data_step=session.data_step,
        documents=name_documents(loader.shards, loader.documents(session.data_step)),
    )
    if verdict.action == "give_up":
        raise UserError(
            f"step {session.step}: gradients overflow at fp16's lowest loss scale, step after "
            f"step; {_MEND}, or use precision: bf16"
        )
    if verdict.action != "roll_back":
        return False
    roll_back(session, found, verdict.window)
    return True


def roll_back(session: Session, why: str, window: tuple[int | None, int] = (0, 0)) -> None:
    """Go back to the newest whole checkpoint, and leave out a window of the data. Collective.

    window: data steps [first, stop); first None: from the checkpoint's own on.
    """
    left = session.step
    if not session.health.count_rollback():
        raise UserError(
            f"step {left}: {why}: training diverged, and the run has gone back "
            f"{session.config.health.max_rollbacks} times (health.max_rollbacks); {_MEND}, and run "
            "again: it goes on from the last checkpoint"
        )
    session.saver.wait()
    session.beat()
    checkpoint = starting_point(session.config, session.ranks)
    if checkpoint is None:
        raise UserError(
            f"step {left}: {why}: training diverged, and there is no checkpoint to go back to; "
            f"{_MEND}"
        )
    session.beat()
    kept = {"rollbacks": session.health.rollbacks, "lr_factor": session.health.lr_factor}
    left_out = session.loader.skipped
    restore(session, checkpoint)
    session.health.load_state_dict({**session.health.state_dict(), **kept})
    for earlier in left_out:  # of roll-backs since that checkpoint
        session.loader.skip(*earlier)
    first, stop = window
    first = session.loader.step if first is None else first
    if stop > first:
        session.loader.skip(first, stop)
    session.describe_order()
    if session.log is not None:
        session.log.rewind(session.step)
    told = f", leaving out data steps {first} to {stop - 1}" if stop > first else ""
    session.note("rollback", f"back from step {left}{told}", left_step=left, window=[first, stop])


def check_replicas(session: Session) -> bool:
    """Compare what ranks hold in common; go back where it differs, and say so. Collective."""
    drifts = session.engine.compare_replicas()
    if not drifts:
        return False
    for drift in drifts:
        who = (
            "two ranks differ, and with two it cannot be told which is right"
            if drift.rank is None
            else f"rank {drift.rank} differs"
        )
        session.note(
            "drift",
            f"memory changed on its own: {who}, in {drift.tensor}; check that machine's memory",
            rank=drift.rank,
            tensor=drift.tensor,
        )
    roll_back(session, f"{drifts[0].tensor} differs between ranks")
    return True
