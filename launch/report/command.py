"""`python -m launch report RUN…`: runs as one HTML page, written or served."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.arguments import counted, positive
from launch.report.page import write_report
from launch.report.sections import Rates
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError

PORT = 8686


def main(argv: Sequence[str]) -> int:
    """Write the page, or serve it. Raises UserError."""
    options = _parser().parse_args(argv)
    missing = [run for run in options.run if not run.is_dir()]
    if missing:
        raise UserError(f"{missing[0]}: no such run directory", status=EXIT_BAD_INPUT)
    rates = Rates(options.price_per_gpu_hour, options.watts)
    if options.serve:
        from launch.report.serve import serve

        return serve(options.run, options.port, rates)
    path = write_report(options.run, options.output or _default(options.run[0]), rates)
    print(f"wrote {path}")
    return EXIT_OK


def _default(run: Path) -> Path:
    """Where the page goes; a fine-tuning run has one of its own name, of its scores."""
    return run / ("training.html" if (run / "report.json").is_file() else "report.html")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch report", description=__doc__)
    parser.add_argument(
        "run", nargs="+", type=Path, help="run directory, or a folder of runs; several are compared"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="default: report.html in the first directory, training.html where a fine-tuning run "
        "has a report of its scores",
    )
    parser.add_argument(
        "--price-per-gpu-hour", type=positive, help="adds what the run has cost, in your currency"
    )
    parser.add_argument("--watts", type=positive, help="mean power of a GPU; adds the energy")
    parser.add_argument(
        "--serve", action="store_true", help="serve the page to this machine and keep it up to date"
    )
    parser.add_argument(
        "--port",
        type=counted("port", 0, 65535),
        default=PORT,
        help=f"with --serve; 0 = a free one, default {PORT}",
    )
    return parser
