"""RUN/scores.jsonl: what checkpoints of a run scored, one JSON object a line.

`step`, `checkpoint` (a name under RUN/checkpoints), `kind` (perplexity, pseudo_perplexity or task),
`name` (of the texts or the task), `metrics`, `counts` of what was read, and the `settings` under
which they were found.
"""

from pathlib import Path
from typing import Any, NamedTuple

import orjson

from runtime.checkpoint import list_checkpoints, verify
from runtime.checkpoint.format import step_of
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.records import read_metrics
from runtime.sinks.tensorboard import write_scores

NAME = "scores.jsonl"


class Target(NamedTuple):
    """A model directory, and where it stands in a run, if in any."""

    path: Path
    step: int | None = None
    run: Path | None = None

    def record(
        self,
        kind: str,
        name: str,
        settings: dict[str, Any],
        metrics: dict[str, float],
        counts: dict[str, int] | None = None,
    ) -> dict[str, Any]:
        """Return a line of scores.jsonl."""
        return {
            "step": self.step,
            "checkpoint": self.path.name,
            "kind": kind,
            "name": name,
            "metrics": metrics,
            "counts": counts or {},
            "settings": settings,
        }

    def is_scored(self, kind: str, name: str, settings: dict[str, Any]) -> bool:
        """Whether the run has this score already, under the same settings."""
        wanted = self.record(kind, name, settings, {})
        return self.run is not None and any(
            {**found, "metrics": {}, "counts": {}} == wanted
            for found in read_metrics(self.run / NAME)
        )

    def write(self, record: dict[str, Any]) -> None:
        """Append to the run's scores, also for TensorBoard; a directory of no run has none."""
        if self.run is None or self.step is None:
            return
        path = self.run / NAME
        try:
            with path.open("ab") as file:
                file.write(orjson.dumps(record) + b"\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        if (self.run / "tensorboard").is_dir():
            name = record["name"]
            values = {f"{name}/{metric}": value for metric, value in record["metrics"].items()}
            write_scores(self.run / "tensorboard" / "scores", self.step, values)


def targets(source: Path, *, every_checkpoint: bool = False) -> list[Target]:
    """The model directories that are meant, in the order of their steps.

    source: a model directory, a checkpoint of a run, or a run: its newest whole checkpoint, or all.
    What has a manifest is verified, every byte. Raises UserError.
    """
    if not source.is_dir():
        raise _refused(f"{source}: no such directory; models are read from local directories")
    source = source.resolve()
    if (source / "config.json").is_file():
        return [_verified(_in_run(source))]
    found = list_checkpoints(source / "checkpoints")
    if not found:
        raise _refused(
            f"{source}: no config.json and no checkpoints; expected a model directory or a run"
        )
    if every_checkpoint:
        return [_verified(_in_run(checkpoint.path)) for checkpoint in found]
    for checkpoint in reversed(found):
        if not verify(checkpoint.path):
            return [_in_run(checkpoint.path)]
    raise _refused(f"{source}: no checkpoint is whole; see python -m runtime.checkpoint verify")


def _in_run(path: Path) -> Target:
    step, run = step_of(path), path.parent.parent
    is_of_run = step is not None and path.parent.name == "checkpoints"
    return Target(path, step, run) if is_of_run else Target(path)


def _verified(target: Target) -> Target:
    if target.run is not None and (problems := verify(target.path)):
        raise _refused(f"{problems[0]}; name another checkpoint")
    return target


def _refused(message: str) -> UserError:
    return UserError(message, status=EXIT_BAD_INPUT)
