"""`python -m launch report|check|schema|supervise …`."""

import argparse
import json
import os
import sys
from pathlib import Path

from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError, command


@command
def main(argv: list[str] | None = None) -> int:
    """Run one of the launch commands."""
    parser = argparse.ArgumentParser(prog="python -m launch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="write runs as one HTML page")
    report.add_argument("run", nargs="+", type=Path, help="run directory, or a folder of runs")
    report.add_argument("--output", type=Path, help="default: report.html in the first directory")
    check = commands.add_parser("check", help="check a pretraining config; needs no GPU")
    check.add_argument("config", type=Path)
    check.add_argument("overrides", nargs="*", metavar="key=value")
    check.add_argument("--ranks", type=int, default=1, help="how many ranks will train; default 1")
    schema = commands.add_parser("schema", help="print a config's JSON Schema, for editors")
    schema.add_argument("stage", choices=["pretrain", "finetune", "data_prep"])
    supervise = commands.add_parser(
        "supervise", help="start a training command, and start it again when it fails"
    )
    supervise.add_argument("--max-restarts", type=int, default=10, help="give up after; default 10")
    supervise.add_argument(
        "--same-step", type=int, default=3, help="give up after so many failures at one step"
    )
    supervise.add_argument(
        "--grace", type=float, default=60, help="seconds for ranks to end after their launcher has"
    )
    supervise.add_argument(
        "--hostfile", type=Path, help="HOST slots=N a line: torchrun COMMAND on each, over ssh"
    )
    supervise.add_argument("--master-port", type=int, default=29500, help="with it; default 29500")
    supervise.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)
    supervise.add_argument("words", nargs="+", metavar="-- COMMAND …", help="what to start")
    options = parser.parse_args(argv)
    if options.command == "report":
        return _report(options.run, options.output)
    if options.command == "check":
        return _check(options.config, options.overrides, options.ranks)
    if options.command == "supervise":
        return _supervise(options)
    return _schema(options.stage)


def _supervise(options: argparse.Namespace) -> int:
    from launch.hosts import check_deepspeed, read_hostfile
    from launch.remote import Remote
    from launch.supervise import Limits, Local, Started, Supervisor

    limits = Limits(options.max_restarts, options.same_step, options.grace)
    check_deepspeed(options.words, os.environ, Path.cwd())
    hosts = read_hostfile(options.hostfile) if options.hostfile else None

    def start() -> Started:
        if hosts is None:
            return Local(options.words, limits)
        return Remote(hosts, options.words, options.master_port, limits)

    return Supervisor(start, limits, until_eof=options.until_eof).run()


def _report(runs: list[Path], output: Path | None) -> int:
    from launch.report import write_report

    missing = [run for run in runs if not run.is_dir()]
    if missing:
        raise UserError(f"{missing[0]}: no such run directory", status=EXIT_BAD_INPUT)
    path = write_report(runs, output or runs[0] / "report.html")
    print(f"wrote {path}")
    return EXIT_OK


def _check(path: Path, overrides: list[str], ranks: int) -> int:
    from pretrain.config import PretrainConfig, check
    from runtime.config import load

    config = load(PretrainConfig, path, overrides, lambda c: check(c, ranks))
    print(
        f"{path}: good. {config.total_steps:,} steps of {config.tokens_per_step:,} tokens on "
        f"{ranks} ranks, micro-batches of {config.micro_batch_size(ranks)}"
    )
    return EXIT_OK


def _schema(stage: str) -> int:
    from data_prep.config import DataPrepConfig
    from finetune.config import FinetuneConfig
    from pretrain.config import PretrainConfig
    from runtime.config import Config

    schemas: dict[str, type[Config]] = {
        "pretrain": PretrainConfig,
        "finetune": FinetuneConfig,
        "data_prep": DataPrepConfig,
    }
    print(json.dumps(schemas[stage].model_json_schema(), indent=2, ensure_ascii=False))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
