"""`python -m finetune search`: the values of config keys that score best on dev."""

import argparse
import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.config import BEST, FinetuneConfig, check
from finetune.runs import carry_out, last_words, override, refuse_launcher
from finetune.search.results import shown_score, table, write_results
from finetune.search.space import Dimension, read_space
from finetune.search.study import PRUNERS, SAMPLERS, Row, Settings, Study, Trial, import_optuna
from runtime.config import ConfigError, flat, load
from runtime.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, EXIT_PREEMPTED, UserError
from runtime.records import read_metrics
from runtime.signals import StopRequest


def main(arguments: list[str]) -> int:
    """Search; exit status 0 where a trial came to its end, 1 where none did."""
    options = _parse(arguments)
    refuse_launcher("search")
    import_optuna()
    os.umask(0o077)
    config, space = _read(options)
    out = options.out or config.run_dir.with_name(f"{config.run_dir.name}-search")
    out.mkdir(parents=True, exist_ok=True)
    stop = StopRequest()
    about = {
        "config": {
            name: value
            for name, value in flat(config.model_dump(mode="json")).items()
            if not name.startswith(("run.name", "run.dir", "checkpoint.", "health.", "log."))
        },
        "sampler": options.sampler,
        "pruner": options.pruner,
        "seed": options.seed,
    }
    settings = Settings(options.sampler, options.pruner, options.seed)
    with _alone(out):
        study = Study(out / "study.db", space, about, settings)
        search = _Search(options, config, study, out, stop)
        while sum(row.state != "running" for row in study.rows()) < options.trials:
            search.one()
    best = study.best()
    print(f"\n{table(study.rows(), config.metric)}")
    if best is None:
        print(f"no trial came to its end; what each said is in {out / 'trials'}")
        return EXIT_FAILED
    print(
        f"best: trial {best.number}, dev {config.metric} {shown_score(best.score, config.metric)}; "
        f"train with it: python -m finetune {out / 'best.yaml'}"
    )
    return EXIT_OK


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetune search",
        description="Try values of config keys and keep those that score best on dev. Test data "
        "are never looked at. The same command again goes on with an interrupted search; more "
        "--trials extend a finished one.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="config of the runs")
    parser.add_argument(
        "space",
        type=Path,
        metavar="SPACE",
        help="YAML, a key a line: optim.lr: {low: 1e-5, high: 1e-3, log: true}, or [choice, …]",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every trial")
    parser.add_argument("--trials", type=int, default=20, help="in all (20)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each run (1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: run.dir with -search")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="how to choose (tpe)")
    parser.add_argument(
        "--pruner", choices=PRUNERS, default="median", help="how to end bad trials early (median)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choices (0)")
    parser.add_argument(
        "--keep-models", action="store_true", help="of all trials, not only of the best"
    )
    options = parser.parse_intermixed_args(arguments)
    for name in ("trials", "ranks"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}")
    if options.seed < 0:
        parser.error(f"--seed: expected at least 0, got {options.seed}")
    return options


def _read(options: argparse.Namespace) -> tuple[FinetuneConfig, list[Dimension]]:
    """The config and the space, each value at the ends of a range tried against the schema."""
    config = load(
        FinetuneConfig, options.config, options.overrides, lambda c: check(c, options.ranks)
    )
    space = read_space(options.space, FinetuneConfig)
    problems = []
    for dimension in space:
        for value in dimension.ends():
            words = [*options.overrides, *_cleared(dimension.key), override(dimension.key, value)]
            try:
                load(FinetuneConfig, options.config, words)
            except ConfigError as error:
                problems.append(f"{options.space}: {error}")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config, space


def _cleared(key: str) -> list[str]:
    """A run's length is given as one of two keys: searching over one removes the other."""
    other = {"steps": "epochs", "epochs": "steps"}.get(key)
    return [f"{other}=null"] if other else []


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold a search's directory. Raises UserError where another process searches in it."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{out}: another search is at work here; wait for it, or choose another --out",
                status=EXIT_BAD_INPUT,
            ) from error
        yield


class _Search:
    """Tries one choice after the other, and writes down what came of each."""

    def __init__(
        self,
        options: argparse.Namespace,
        config: FinetuneConfig,
        study: Study,
        out: Path,
        stop: StopRequest,
    ) -> None:
        self._options, self._config, self._study = options, config, study
        self._out, self._stop = out, stop

    def one(self) -> None:
        """Try the next choice. Raises UserError with status 75 where asked to stop."""
        trial = self._study.next()
        twin = self._study.twin(trial)
        if twin is None:
            self._run(trial)
        else:
            trial.tell("complete", twin.score, 0.0, f"same values as trial {twin.number}")
        row = self._study.rows()[trial.number]
        best = self._study.best()
        if not self._options.keep_models:
            self._discard(best)
        write_results(self._out, self._study.rows(), self._config, best, self._best_words(best))
        told = ", ".join(f"{key} {_short(value)}" for key, value in row.values.items())
        score = shown_score(row.score, self._config.metric)
        mark = "  (best so far)" if best is not None and best.number == row.number else ""
        outcome = f"failed: {row.reason}" if row.state == "failed" else f"{row.state}, dev {score}"
        print(f"trial {row.number}: {told}: {outcome}{mark}", flush=True)

    def _run(self, trial: Trial) -> None:
        home = self._out / "trials" / f"{trial.number:04d}"
        words = [str(self._options.config), *self._options.overrides, *_words_of(trial.values)]
        words += ["data.test=null", override("run.dir", str(home))]
        log = home.with_name(f"{home.name}.log")
        started = time.monotonic()
        status = carry_out(
            words,
            self._options.ranks,
            log,
            self._stop,
            lambda: trial.is_hopeless(_scores(home)),
        )
        seconds = time.monotonic() - started
        scores = _scores(home)
        if status == EXIT_OK and scores:
            trial.tell("complete", max(scores), seconds)
        elif status == EXIT_PREEMPTED:
            trial.tell("pruned", None, seconds)
        else:
            trial.tell("failed", None, seconds, last_words(log))

    def _best_words(self, best: Row | None) -> FinetuneConfig | None:
        if best is None:
            return None
        words = [*self._options.overrides, *_words_of(best.values)]
        words.append(override("run.dir", str(self._out / "best-run")))
        return load(FinetuneConfig, self._options.config, words)

    def _discard(self, best: Row | None) -> None:
        """Delete the weights of all finished trials but the best; what they scored stays."""
        for row in self._study.rows():
            if row.state != "running" and (best is None or row.number != best.number):
                home = self._out / "trials" / f"{row.number:04d}"
                for name in (BEST, "checkpoints"):
                    shutil.rmtree(home / name, ignore_errors=True)


def _words_of(values: dict[str, Any]) -> Sequence[str]:
    cleared = [word for key in values for word in _cleared(key)]
    return [*cleared, *(override(key, value) for key, value in values.items())]


def _scores(home: Path) -> list[float]:
    """The dev scores of a run so far, the greater the better."""
    records = read_metrics(home / "metrics.jsonl")
    # Steps that were done again after an interruption count once.
    found = {r["step"]: r["dev_score"] for r in records if "dev_score" in r}
    return [found[step] for step in sorted(found)]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
