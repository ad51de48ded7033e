"""What is started, whichever way: a stage's script, its config and overrides, read beforehand."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.config import FinetuneConfig
from launch.cluster.printing import ROOT
from pretrain.config import PretrainConfig, check_batches
from runtime.checks import check_batch
from runtime.config import Problem, load
from runtime.errors import EXIT_BAD_INPUT, UserError

STAGES = ("pretrain", "finetune")
StageConfig = PretrainConfig | FinetuneConfig


class Training(NamedTuple):
    """A training run to be started."""

    stage: str
    path: str  # of the config
    overrides: Sequence[str]
    config: StageConfig

    @property
    def file(self) -> Path:
        """The config."""
        return Path(self.path)

    @property
    def words(self) -> list[str]:
        """The script and its arguments."""
        return [str(ROOT / "launch" / f"{self.stage}.sh"), self.path, *self.overrides]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words that all ways of starting have in common."""
    parser.add_argument(
        "--stage", choices=STAGES, default="pretrain", help="what runs; default pretrain"
    )
    parser.add_argument("--print", action="store_true", help="show what would run, and stop")
    parser.add_argument(
        "words", nargs="+", metavar="-- CONFIG [key=value …]", help="the run's config and overrides"
    )


def read(options: argparse.Namespace, ranks: int | None) -> Training:
    """Read the config, so that a mistake in it costs no time in a queue. Raises UserError.

    Every key is checked, and that the batch splits over so many ranks. The data and the machine
    are checked where the run starts.
    """
    path, *overrides = options.words
    for word in overrides:
        if "=" not in word:
            raise UserError(
                f"expected CONFIG key=value …, got {word[:80]!r} after {path[:80]!r}",
                status=EXIT_BAD_INPUT,
            )
    if "=" in path:  # the script would take it for an override
        raise UserError(
            f"{path[:80]!r}: give the config first; its path may hold no '='",
            status=EXIT_BAD_INPUT,
        )
    path = f"./{path}" if path.startswith("-") else path
    config = read_config(options.stage, Path(path), overrides, ranks)
    return Training(options.stage, path, tuple(overrides), config)


def read_config(
    stage: str, path: Path | None, overrides: Sequence[str], ranks: int | None = None
) -> StageConfig:
    """A stage's config; `ranks` as in `read`. Raises ConfigError with every mistake."""

    def check(config: StageConfig) -> list[Problem]:
        if isinstance(config, PretrainConfig):
            return [*check_batches(config.batch, ranks or 1)]
        batch = config.batch
        return [*check_batch(batch.global_batch_size, batch.micro_batch_size, ranks or 1)]

    if stage == "finetune":
        return load(FinetuneConfig, path, overrides, check)
    return load(PretrainConfig, path, overrides, check)


def built_in(stage: str) -> Path | None:
    """The config that a stage's script takes where none is given."""
    return ROOT / "pretrain" / "configs" / "demo.yaml" if stage == "pretrain" else None
