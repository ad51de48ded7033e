"""The end of a run of several tasks: each one's best model, predictions and scores."""

from finetune import results
from finetune.multitask.session import JointSession


def is_reported(session: JointSession) -> bool:
    """Whether the scores of every task are written."""
    return all(results.is_reported(member) for member in session.members.values())


def write_results(session: JointSession) -> None:
    """Score each task's best model, as a run of that task alone would. Collective."""
    for name, member in session.members.items():
        session.progress.say(f"\n--- {name}")
        results.write_results(member)
