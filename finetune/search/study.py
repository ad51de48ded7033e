"""A search's memory: which values were tried and what came of them. Alone in importing optuna.

Every trial's values are a pure function of the seed, its number and the trials before it, so that
an interrupted search goes on as if it had not been.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.search.space import Dimension
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.seed import mix

SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "hyperband", "none")
_STARTUP_TRIALS = 4  # that run to their end before another is compared with them


class Row(NamedTuple):
    """A trial as the table shows it."""

    number: int
    state: str  # complete, pruned, failed or running
    score: float | None  # the greater the better
    values: dict[str, Any]  # by config key
    evaluations: int
    seconds: float | None
    reason: str  # why it failed


class Trial:
    """One choice of values, while it is tried."""

    def __init__(self, study: "Study", trial: Any) -> None:
        self._study, self._trial = study, trial
        self.number: int = trial.number
        stored: dict[str, Any] = trial.params
        self.values = {d.key: d.value(stored[d.key]) for d in study.space}
        self._reported = len(study.frozen(self.number).intermediate_values)

    def is_hopeless(self, scores: Sequence[float]) -> bool:
        """Tell the scores of its evaluations so far; whether it falls too far behind the others."""
        for number in range(self._reported, len(scores)):
            self._trial.report(scores[number], number + 1)
        is_news = len(scores) > self._reported
        self._reported = max(self._reported, len(scores))
        return is_news and bool(self._trial.should_prune())

    def tell(self, state: str, score: float | None, seconds: float, reason: str = "") -> None:
        """End it as complete (with its score), pruned or failed."""
        import optuna

        self._trial.set_user_attr("seconds", seconds)
        self._trial.set_user_attr("reason", reason)
        states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
        self._study.told(
            self._trial,
            score if state == "complete" else None,
            optuna.trial.TrialState[states[state]],
        )


class Study:
    """The trials of a search, in an SQLite file that outlives it.

    Raises UserError without optuna, or where the file is of another config or space.
    """

    def __init__(
        self, path: Path, space: list[Dimension], about: dict[str, Any], settings: "Settings"
    ) -> None:
        optuna = import_optuna()
        self.space, self._settings = space, settings
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
        self._study = optuna.create_study(
            study_name="search",
            storage=storage,
            direction="maximize",
            pruner=_pruner(settings.pruner),
            load_if_exists=True,
        )
        self._require_same(path, {**about, "space": [d._asdict() for d in space]})
        self._distributions = {d.key: _distribution(d) for d in space}

    def _require_same(self, path: Path, about: dict[str, Any]) -> None:
        stored = self._study.user_attrs
        for name, value in json.loads(json.dumps(about)).items():
            if name not in stored:
                self._study.set_user_attr(name, value)
            elif stored[name] != value:
                raise UserError(
                    f"{path}: its search was begun with another {name}: {stored[name]!r}, not "
                    f"{value!r}; restore it, or choose another --out",
                    status=EXIT_BAD_INPUT,
                )

    def next(self) -> Trial:
        """Go on with a trial that an interruption has left, or choose new values."""
        import optuna

        for found in self._study.trials:
            if found.state != optuna.trial.TrialState.RUNNING:
                continue
            if found.params.keys() == self._distributions.keys():
                return Trial(self, optuna.trial.Trial(self._study, found._trial_id))
            self._study.tell(found.number, state=optuna.trial.TrialState.FAIL)  # cut while drawn
        seed = mix(self._settings.seed, len(self._study.trials)) % 2**32
        samplers = optuna.samplers
        self._study.sampler = (
            samplers.RandomSampler(seed=seed)
            if self._settings.sampler == "random"
            else samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS)
        )
        return Trial(self, self._study.ask(self._distributions))

    def told(self, trial: Any, score: float | None, state: Any) -> None:
        """Store the end of a trial."""
        self._study.tell(trial, score, state=state)

    def frozen(self, number: int) -> Any:
        """A trial as it is stored."""
        return self._study.trials[number]

    def twin(self, trial: Trial) -> Row | None:
        """A completed trial of the very same values; as runs are, its result is the same."""
        for row in self.rows():
            if row.state == "complete" and row.values == trial.values:
                return row
        return None

    def rows(self) -> list[Row]:
        """Every trial, in their order."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            Row(
                t.number,
                names.get(t.state.name, "running"),
                t.value if t.state.name != "FAIL" else None,
                {d.key: d.value(t.params[d.key]) for d in self.space if d.key in t.params},
                len(t.intermediate_values),
                t.user_attrs.get("seconds"),
                t.user_attrs.get("reason", ""),
            )
            for t in self._study.trials
        ]

    def best(self) -> Row | None:
        """The completed trial of the greatest score, the first of several."""
        done = [row for row in self.rows() if row.state == "complete" and row.score is not None]
        return max(done, key=lambda row: (row.score, -row.number), default=None)


class Settings(NamedTuple):
    """How values are chosen and trials ended early."""

    sampler: str = "tpe"
    pruner: str = "median"
    seed: int = 0


def import_optuna() -> Any:
    """The package, quiet. Raises UserError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "a search needs optuna; pip install 'ingot[finetune]'", status=EXIT_BAD_INPUT
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _pruner(name: str) -> Any:
    import optuna

    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=2)
    return optuna.pruners.HyperbandPruner() if name == "hyperband" else optuna.pruners.NopPruner()


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    low, high, step = dimension.low, dimension.high, dimension.step
    if dimension.is_whole:
        return IntDistribution(int(low), int(high), log=dimension.log, step=int(step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=step)
