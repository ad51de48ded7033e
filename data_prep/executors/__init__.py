"""Where tasks run: processes of this machine, a Ray cluster, or a Slurm array."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_prep.plan import Plan
    from data_prep.stages import Stage


def map_tasks(plan: "Plan", stage: "Stage", numbers: Sequence[int]) -> Iterator[int]:
    """Run tasks of a stage and yield their numbers, in the order they finish.

    Raises UserError for what a task raises, and for a worker that is lost.
    """
    if not numbers:
        return iter(())
    kind = plan.config.executor
    if kind == "ray":
        from data_prep.executors.ray import map_by_ray

        return map_by_ray(stage.task, numbers, plan)
    if kind == "slurm":
        from data_prep.executors.slurm import map_by_slurm

        return map_by_slurm(stage, numbers, plan)
    from data_prep.executors.local import available_cores, map_by_processes

    return map_by_processes(stage.task, numbers, plan.config.workers or available_cores())
