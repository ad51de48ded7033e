"""`python -m launch check CONFIG`: what is wrong with a config, and what its run will take.

Needs no GPU, and looks at everything that can be known before the queue: keys, data, what goes
together, memory, time, disk. Exit status 2 where the run would not start or does not fit.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.check import target
from launch.check.report import Report
from launch.check.stage import STAGES, stage_of
from runtime.config import ConfigError
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

_MOST = 1e9  # of a rate or a price


def main(argv: Sequence[str]) -> int:
    """Check the config. Raises ConfigError with every mistake that the run would refuse."""
    options = _parser().parse_intermixed_args(argv)
    for name in ("price_per_gpu_hour", "watts", "disk_bandwidth"):
        value = getattr(options, name)
        if value is not None and not 0 < value < _MOST:
            raise UserError(
                f"--{name.replace('_', '-')}: got {value}, expected more than 0",
                status=EXIT_BAD_INPUT,
            )
    try:
        report = _check(options)
    except ConfigError as error:
        if not options.json:
            raise
        print(json.dumps({"config": str(options.config), "good": False, "errors": error.lines}))
        return EXIT_BAD_INPUT
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        from launch.check.render import Page, is_coloured, width_of

        print(Page(width_of(sys.stdout), colour=is_coloured(sys.stdout)).text(report))
    return EXIT_BAD_INPUT if report.errors else EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config", type=Path, help="of pretraining, fine-tuning or data preparation")
    add("overrides", nargs="*", metavar="key=value", help="as on the run's own command line")
    target.add_options(parser)
    add("--stage", choices=list(STAGES), help="if it cannot be seen from the config's keys")
    add("--no-data", action="store_true", help="data and models are on another machine")
    add("--verify", action="store_true", help="hash every byte of the data, not only sizes")
    add("--probe", action="store_true", help="measure the step's time here, in a few short steps")
    add("--disk-bandwidth", type=float, metavar="GB/s", help="that checkpoints are written with")
    add("--price-per-gpu-hour", type=float, metavar="RATE", help="of a CPU: per machine")
    add("--watts", type=float, help="of one GPU (or machine); default the device's own")
    add("--json", action="store_true", help="everything for programs, in bytes and seconds")
    return parser


def _check(options: argparse.Namespace) -> Report:
    stage = options.stage or stage_of(options.config, options.overrides)
    if stage == "pretrain":
        from launch.check.pretraining import check_pretraining

        return check_pretraining(options.config, options.overrides, options)
    from launch.check.other_stages import check_data_prep, check_finetuning, check_multitask

    checks: dict[str, Callable[..., Report]] = {
        "finetune": check_finetuning,
        "multitask": check_multitask,
        "data_prep": check_data_prep,
    }
    return checks[stage](options.config, options.overrides, options)
