"""TensorBoard event files: scalars, texts, histograms and the config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from runtime.config import to_yaml
from runtime.sinks.sink import Histogram


class TensorBoard:
    """Writes event files; each start of a run, and each roll-back, begins another."""

    def __init__(self, folder: Path, config: pydantic.BaseModel) -> None:
        self._folder, self._config = folder, config
        self._writer: Any = None

    def rewind(self, step: int) -> None:
        """See `Sink`; what earlier files say of later steps is not shown any more."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)
        self.text(step, "config", to_yaml(self._config))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """See `Sink`; as it is: TensorBoard reads Markdown, in which indented lines are code."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """See `Sink`."""
        self._writer.add_histogram_raw(
            name,
            min=histogram.edges[0],
            max=histogram.edges[-1],
            num=sum(histogram.counts),
            sum=histogram.sum,
            sum_squares=histogram.sum_squares,
            bucket_limits=histogram.edges[1:],
            bucket_counts=histogram.counts,
            global_step=step,
        )

    def close(self) -> None:
        """See `Sink`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def write_scores(folder: Path, step: int, values: Mapping[str, float]) -> None:
    """Add numbers of a step that the run itself does not write, such as a checkpoint's scores.

    folder: of their own, for TensorBoard reads the newest file of a folder alone.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
