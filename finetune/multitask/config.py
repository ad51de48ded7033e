"""The config of several tasks over one trunk, and its checks. Torch-free."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import pydantic

from finetune.config import (
    Batch,
    Data,
    Evaluate,
    FinetuneConfig,
    Optim,
    check,
    check_resume,
    cuts_examples,
    read_sets,
)
from finetune.robust.config import Robust
from finetune.tasks.config import TaskKeys
from finetune.transfer.config import Transfer
from runtime import sections
from runtime.checks import check_schedule
from runtime.config import Config, Problem, key, section

# What the runs of single tasks would have of their own.
_OWN = ("task", "data", "robust")


class Member(Config):
    """One of the tasks."""

    name: str = key(
        ..., "Its directory below the run's, and its name in the logs", pattern=r"^\w[\w-]*$"
    )
    task: TaskKeys = section(TaskKeys, "The task")
    data: Data = key(..., "The data")
    robust: Robust = section(Robust, "Robust training")
    metric: str | None = key(
        None, "The score that chooses its best model, one of the task's; none = its first"
    )
    weight: float = key(1.0, "It is drawn so many times as often as its size says", gt=0)


class MultitaskConfig(Config):
    """A run of several tasks over one trunk."""

    run: sections.Run = section(sections.Run, "The run")
    model: str = key(
        ..., "Model directory, ours or Hugging Face's, or a run: its newest whole checkpoint"
    )
    tasks: tuple[Member, ...] = key(..., "The tasks: a list of name, task, data", min_length=2)
    temperature: float = key(
        2.0,
        "Steps of a task are drawn in proportion to its examples to the power 1 / temperature: 1 = "
        "as many as there are, large = all tasks alike",
        ge=1,
    )
    batch: Batch = section(Batch, "The batch: texts of one task")
    epochs: int | None = key(
        None, "Length of the run, if not given as steps; none = 3", unit="passes over all", ge=1
    )
    steps: int | None = key(None, "Length of the run, instead of epochs", unit="steps", ge=1)
    optim: Optim = section(Optim, "The optimizer")
    schedule: sections.Schedule = section(sections.Schedule, "The learning rate")
    transfer: Transfer = section(Transfer, "How much of the checkpoint is reused")
    precision: Literal["auto", "fp32", "bf16"] = key(
        "auto",
        "Of forward and backward; weights are fp32 always; auto = bf16 on a GPU that has it",
    )
    every_steps: int | None = key(
        None, "Evaluate every so many steps and at the end; none = once each pass over all", ge=1
    )
    patience: int = key(
        0, "Stop after so many evaluations in a row without a new best of any task; 0 = never", ge=0
    )
    checkpoint: sections.Checkpoint = section(sections.Checkpoint, "Saving")
    health: sections.Hangs = section(sections.Hangs, "When a rank makes no progress")
    log: sections.Log = section(sections.Log, "Logs")

    @property
    def run_dir(self) -> Path:
        """The run directory, with {name} filled in."""
        return Path(self.run.dir.replace("{name}", self.run.name))

    @property
    def members(self) -> dict[str, FinetuneConfig]:
        """Each task by name, as a run of its own below this one's directory."""
        shared = {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name in FinetuneConfig.model_fields and name not in (*_OWN, "schedule")
        }
        return {
            member.name: FinetuneConfig(
                **{
                    **shared,
                    **{name: getattr(member, name) for name in _OWN},
                    "run": self.run.model_copy(update={"dir": str(self.run_dir / member.name)}),
                    "evaluate": Evaluate(metric=member.metric),
                }
            )
            for member in self.tasks
        }

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give the length of the run as steps or as epochs, one of them")
        names = [member.name for member in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two tasks have the name {twice[0]!r}; give each its own")
        taken = [name for name in names if name in ("checkpoints", "tensorboard", "wandb")]
        if taken:
            raise ValueError(f"{taken[0]!r} is a directory of the run itself; choose another name")
        return self


def steps_of_a_pass(config: MultitaskConfig, sizes: list[int]) -> int:
    """Steps in which all examples of all tasks could be seen once."""
    return sum(-(-size // config.batch.global_batch_size) for size in sizes)


def total_steps(config: MultitaskConfig, sizes: list[int]) -> int:
    """Optimizer steps of the whole run; sizes: training examples of each task."""
    return config.steps or (config.epochs or 3) * steps_of_a_pass(config, sizes)


def check_all(config: MultitaskConfig, world_size: int) -> list[Problem]:
    """Check each task as a run of its own, and what concerns them all."""
    found: dict[Problem, None] = {}
    for place, member in enumerate(config.members.values()):
        for problem in check(member, world_size):
            found[_placed(problem, place)] = None
    problems = list(found)
    if config.transfer.strategy == "auto":
        wanted = "auto measures one task; choose full, head, partial or architecture for several"
        problems.append(Problem("transfer.strategy", wanted))
    if len({member.robust.dropout for member in config.members.values()}) > 1:
        problems.append(
            Problem(
                "tasks", "robust.dropout is of the trunk, which all share; write the same in all"
            )
        )
    if not problems and not any(map(cuts_examples, config.members.values())):
        sizes = [len(read_sets(member)[0].train) for member in config.members.values()]
        problems += check_schedule(config.schedule, total_steps(config, sizes))
    return [*problems, *check_resume(config)]


def _placed(problem: Problem, place: int) -> Problem:
    """A problem of one task under the key where it is written in this config."""
    name = problem.key
    if name == "evaluate.metric":
        name = "metric"
    elif name.partition(".")[0] not in _OWN:
        return problem
    return problem._replace(key=f"tasks.{place}.{name}")


def names_with_shares(config: MultitaskConfig, sizes: list[int]) -> Iterator[tuple[str, float]]:
    """Each task and how often a step is its: weight · size ** (1 / temperature), as a share.

    As Raffel et al. 2020, §3.5.2, mix tasks.
    """
    shares = [
        member.weight * size ** (1 / config.temperature)
        for member, size in zip(config.tasks, sizes, strict=True)
    ]
    for member, share in zip(config.tasks, shares, strict=True):
        yield member.name, share / sum(shares)
