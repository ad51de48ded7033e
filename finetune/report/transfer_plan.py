"""What a transfer report compares: ways to train, seeds, and the directory of its runs.

Torch-free.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from finetune.config import FinetuneConfig, check, model_directory
from runtime.config import flat, load
from runtime.errors import EXIT_BAD_INPUT, UserError

FILE = "plan.json"
PRETRAINED = "pretrained"  # the way that all others are compared with
SCRATCH = "scratch"
_OF_A_RUN = ("run.name", "run.dir", "run.seed")


class Way(NamedTuple):
    """One way to train on the same examples."""

    name: str
    overrides: tuple[str, ...]  # of the config, as on a command line


class Plan(NamedTuple):
    """A transfer report: every way with every seed."""

    file: Path  # the config
    overrides: tuple[str, ...]  # of all ways
    ways: tuple[Way, ...]
    seeds: tuple[int, ...]
    output: Path
    keeps_models: bool

    def overrides_of(self, way: Way, seed: int) -> list[str]:
        """What is changed in the config for one run."""
        directory = self.run_dir(way, seed)
        # A name with a colon or a quote in it stays one YAML value between double quotes.
        place = orjson.dumps(str(directory)).decode()
        return [*self.overrides, *way.overrides, f"run.seed={seed}", f"run.dir={place}"]

    def run_dir(self, way: Way, seed: int) -> Path:
        """Where one run lies."""
        return self.output / f"{way.name}-seed-{seed}"

    def config(self, way: Way, seed: int) -> FinetuneConfig:
        """The config of one run. Raises ConfigError."""
        return load(FinetuneConfig, self.file, self.overrides_of(way, seed))


def check_plan(plan: Plan) -> FinetuneConfig:
    """Check the config of every way, before anything runs; returns the first's. Raises UserError.

    Raises UserError also where the directory holds runs of other settings, files or weights.
    """
    first, seed = plan.ways[0], plan.seeds[0]
    for way in plan.ways:
        load(FinetuneConfig, plan.file, plan.overrides_of(way, seed), lambda c: check(c, 1))
    config = plan.config(first, seed)
    _agree(plan, config)
    return config


def _agree(plan: Plan, config: FinetuneConfig) -> None:
    """Remember what the runs are made of, and refuse to mix them with others."""
    path = plan.output / FILE
    now = _description(plan, config)
    try:
        before: dict[str, dict[str, Any]] = orjson.loads(path.read_bytes())
        differing = list(_differences(before, now))
        for part, found in before.items():  # ways may be added
            now[part] = {**found, **now[part]}
    except FileNotFoundError:
        differing = []
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: cannot be read: {error}", status=EXIT_BAD_INPUT) from error
    if differing:
        raise UserError(
            f"{plan.output}: its runs were made with another {differing[0]}; restore that, or "
            "choose another --output",
            status=EXIT_BAD_INPUT,
        )
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(now, option=orjson.OPT_INDENT_2))
    except OSError as error:
        message = f"{plan.output}: cannot be written: {error.strerror}"
        raise UserError(message, status=EXIT_BAD_INPUT) from error


def _description(plan: Plan, config: FinetuneConfig) -> dict[str, dict[str, Any]]:
    settings = flat(config.model_dump(mode="json"))
    return {
        "settings": {k: v for k, v in settings.items() if k not in _OF_A_RUN},
        "files": {str(path): _hash(path) for path in _sources(config)},
        "ways": {way.name: list(way.overrides) for way in plan.ways},
    }


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for part, what in (("settings", ""), ("files", "file "), ("ways", "way ")):
        for name, value in now[part].items():
            if name in before[part] and before[part][name] != value:
                shown = "" if part == "files" else f" ({before[part][name]!r}, now {value!r})"
                yield f"{what}{name}{shown}"


def _sources(config: FinetuneConfig) -> list[Path]:
    data = config.data
    files = [Path(name) for name in (data.train, data.dev, data.test) if name]
    return [*files, *sorted(model_directory(Path(config.model)).glob("*.safetensors"))]


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def ways_of(scratch: Sequence[str], others: Sequence[Sequence[str]]) -> tuple[Way, ...]:
    """The checkpoint as it is, the same shape with fresh weights, and what else was asked for."""
    ways = [
        Way(PRETRAINED, ()),
        Way(SCRATCH, ("transfer.strategy=architecture", *scratch)),
        *(Way(name, tuple(overrides)) for name, *overrides in others),
    ]
    names = [way.name for way in ways]
    for name in names:
        if names.count(name) > 1 or not name.replace("-", "").replace("_", "").isalnum():
            raise UserError(
                f"--also {name}: expected a name of its own, of letters, digits, - and _",
                status=EXIT_BAD_INPUT,
            )
    return tuple(ways)
