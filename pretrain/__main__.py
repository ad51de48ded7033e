"""`python -m pretrain [CONFIG.yaml] [key=value …]`, behind `deepspeed launch/pretrain.sh`."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import outcome
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError, command, leave
from runtime.launcher import adopt_mpi
from runtime.signals import StopRequest

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig

USAGE = """\
usage: deepspeed launch/pretrain.sh [CONFIG.yaml] [key=value …]      (or torchrun, bash, sbatch)

Pretrain a Transformer. With no config: the built-in demo model on the built-in demo corpus.
The same command again resumes an interrupted run. --print-config shows every key and stops;
--check stops after checking everything that needs no GPU.

`python -m pretrain import-deepspeed --help`: go on from a checkpoint that DeepSpeed wrote.
`python -m pretrain export-fp32 --help`: a checkpoint's fp32 weights as a model directory.
`python -m pretrain evaluate --help`: perplexity, bits per byte and tasks of checkpoints."""

DEMO = Path(__file__).parent / "configs" / "demo.yaml"
FLAGS = ("--print-config", "--check")


@command
def main(argv: list[str] | None = None) -> int:
    """Check the config, then train. Exit status: 0 done, 2 bad config, 1 failed, 75 stopped."""
    arguments = sys.argv[1:] if argv is None else argv
    adopt_mpi()
    # DeepSpeed's launcher adds --local_rank=N; the environment says the same.
    arguments = [a for a in arguments if not a.startswith("--local_rank")]
    if arguments[:1] == ["import-deepspeed"]:
        from pretrain.deepspeed_import import main as import_deepspeed

        return import_deepspeed(arguments[1:])
    if arguments[:1] == ["export-fp32"]:
        from pretrain.masters import main as export_fp32

        return export_fp32(arguments[1:])
    if arguments[:1] == ["evaluate"]:
        from pretrain.scoring.command import main as evaluate

        return evaluate(arguments[1:])
    if not {"-h", "--help", *FLAGS} & set(arguments):
        StopRequest(raises=True)  # the imports and checks below take a while
        outcome.tell()
    from pretrain.config import PretrainConfig, check
    from runtime.config import load, print_help, to_yaml

    if {"-h", "--help"} & set(arguments):
        print_help(USAGE, PretrainConfig)
        return EXIT_OK
    flags = [a for a in arguments if a in FLAGS]
    overrides = [a for a in arguments if "=" in a]
    path = _config_file([a for a in arguments if "=" not in a and a not in FLAGS])
    if path is None:
        path = DEMO
        _prepare_demo(overrides)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config = load(PretrainConfig, path, overrides, lambda c: check(c, world_size))
    if flags:
        print(to_yaml(config) if "--print-config" in flags else f"{path}: good")
        return EXIT_OK
    return _train(config)


def _config_file(words: list[str]) -> Path | None:
    options = [word for word in words if word.startswith("-")]
    if options:
        raise UserError(f"unknown option {options[0]}; see --help", status=EXIT_BAD_INPUT)
    if len(words) > 1:
        raise UserError(f"expected one config file, got {' '.join(words)}", status=EXIT_BAD_INPUT)
    return Path(words[0]) if words else None


def _prepare_demo(overrides: list[str], timeout_s: float = 600) -> None:
    """Prepare the built-in corpus, unless the command names other data."""
    if any(override.startswith("data.train=") for override in overrides):
        return
    from data_prep.demo import DIRECTORY, prepare_demo

    if os.environ.get("RANK", "0") == "0":
        prepare_demo()
        return
    deadline = time.monotonic() + timeout_s
    while not (DIRECTORY / "data" / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.5)  # the first rank makes it


def _train(config: "PretrainConfig") -> int:
    os.umask(0o077)  # runs are private to their user
    from pretrain.train import train
    from runtime import dist, provenance
    from runtime.watchdog import Watchdog

    health = config.health
    manifests = [Path(source.path) / "manifest.json" for source in config.data.sources]
    stop = StopRequest()  # from here on there may be something to save
    ranks = dist.init(
        config.run.device,
        max(config.parallel.communication_timeout_s, health.collective_timeout_s),
        start_timeout_s=health.start_timeout_s,
        same=provenance.started_with(config, manifests),
        should_stop=stop.check,
    )
    try:
        dist.require_precision(config.precision, ranks.device)
        with Watchdog(
            config.run_dir,
            ranks,
            start_timeout_s=health.start_timeout_s,
            hang_timeout_s=health.hang_timeout_s,
        ) as watchdog:
            return train(config, ranks, watchdog)
    finally:
        dist.shutdown()


if __name__ == "__main__":
    leave(main())
