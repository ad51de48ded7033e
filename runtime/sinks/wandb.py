"""Weights & Biases, if a config asks for it. The one place that imports wandb."""

import contextlib
import html
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pydantic

from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.sinks.sink import Histogram

_START_S = 60  # that a start may take before the run goes on without
_END_S = 120


class WandB:
    """Sends a run's numbers to one W&B run, which every restart takes up again.

    W&B gets the config as it is stored (secrets redacted), numbers, samples and histograms; not
    the command line, the environment, what is printed, the source tree or its git remote. Whatever
    fails there is said once, and the run goes on without. `WANDB_MODE=offline` writes to
    RUN/wandb, for `wandb sync`.
    """

    def __init__(self, run_dir: Path, project: str, name: str, config: pydantic.BaseModel) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "log.wandb needs wandb; pip install 'ingot[wandb]', or write none",
                status=EXIT_BAD_INPUT,
            ) from error
        self._wandb = wandb
        self._run_dir, self._project, self._name = run_dir, project, name
        self._config = config.model_dump(mode="json")
        self._run: Any = None
        self._is_broken = False

    def rewind(self, step: int) -> None:
        """See `Sink`; what was sent stays there, and later points of a step stand beside it."""
        if self._run is None:
            self._trying(self._start)

    def _start(self) -> None:
        settings = self._wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            init_timeout=_START_S,
            finish_timeout=_END_S,  # what did not get there by then is kept for `wandb sync`
            silent=True,
            # Of the machine it would also send the command line, which may hold a secret.
            x_disable_meta=True,
            x_disable_machine_info=True,
        )
        # Without it a missing key is asked for on a terminal, without an end.
        self._wandb.setup(self._wandb.Settings(silent=True))
        self._run = self._wandb.init(
            project=self._project,
            name=self._name,
            id=_run_id(self._run_dir),
            resume="allow",
            dir=str(self._run_dir),
            config=self._config,
            settings=settings,
        )
        # Its own counter may not go back, as a roll-back does.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._log(step, values)

    def text(self, step: int, name: str, text: str) -> None:
        """See `Sink`."""
        self._trying(lambda: self._log(step, {name: self._wandb.Html(_preformatted(text))}))

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """See `Sink`."""
        shape = histogram.counts, histogram.edges
        self._trying(lambda: self._log(step, {name: self._wandb.Histogram(np_histogram=shape)}))

    def close(self) -> None:
        """See `Sink`."""
        if self._run is not None:
            self._trying(self._run.finish)
        self._run = None

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._trying(lambda: self._run.log({"step": step, **values}))

    def _trying(self, action: Callable[[], object]) -> None:
        if self._is_broken:
            return
        try:
            action()
        except Exception as error:
            self._is_broken, self._run = True, None
            what = " ".join(str(error).split())[:300]
            print(
                f"warning: log.wandb: {type(error).__name__}: {what}; the run goes on without it",
                file=sys.stderr,
            )


def _run_id(run_dir: Path) -> str:
    """The id of the run at W&B, made at the first start and kept in the run directory."""
    path = run_dir / "wandb.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return str(orjson.loads(path.read_bytes())["id"])
    new = uuid.uuid4().hex[:16]
    path.write_bytes(orjson.dumps({"id": new}) + b"\n")
    return new


def _preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
