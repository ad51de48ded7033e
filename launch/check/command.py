"""`python -m launch check CONFIG`: check a pretraining config; needs no GPU."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pretrain.config import PretrainConfig, check
from runtime.config import load
from runtime.errors import EXIT_OK


def main(argv: Sequence[str]) -> int:
    """Check the config. Raises ConfigError with every mistake."""
    parser = argparse.ArgumentParser(prog="python -m launch check", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--ranks", type=int, default=1, help="how many ranks will train; default 1")
    options = parser.parse_args(argv)
    ranks = options.ranks
    config = load(PretrainConfig, options.config, options.overrides, lambda c: check(c, ranks))
    print(
        f"{options.config}: good. {config.total_steps:,} steps of {config.tokens_per_step:,} "
        f"tokens on {ranks} ranks, micro-batches of {config.micro_batch_size(ranks)}"
    )
    return EXIT_OK
