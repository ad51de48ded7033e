"""Where the numbers of a run also go, beside metrics.jsonl: TensorBoard, Weights & Biases."""

from pathlib import Path

import pydantic

from runtime.sections import Log
from runtime.sinks.sink import Histogram, Sink

__all__ = ["Histogram", "Sink", "open_sinks"]


def open_sinks(run_dir: Path, name: str, log: Log, config: pydantic.BaseModel) -> list[Sink]:
    """The sinks that a run's config asks for. Main rank only. Raises UserError without a package.

    config: the whole of it, which sinks show beside the numbers.
    """
    sinks: list[Sink] = []
    if log.tensorboard:
        from runtime.sinks.tensorboard import TensorBoard

        sinks.append(TensorBoard(run_dir / "tensorboard", config))
    if log.wandb is not None:
        from runtime.sinks.wandb import WandB

        sinks.append(WandB(run_dir, log.wandb, name, config))
    return sinks
