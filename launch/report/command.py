"""`python -m launch report RUN…`: runs as one HTML page."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.report.page import write_report
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError


def main(argv: Sequence[str]) -> int:
    """Write the page. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m launch report", description=__doc__)
    parser.add_argument("run", nargs="+", type=Path, help="run directory, or a folder of runs")
    parser.add_argument("--output", type=Path, help="default: report.html in the first directory")
    options = parser.parse_args(argv)
    missing = [run for run in options.run if not run.is_dir()]
    if missing:
        raise UserError(f"{missing[0]}: no such run directory", status=EXIT_BAD_INPUT)
    path = write_report(options.run, options.output or options.run[0] / "report.html")
    print(f"wrote {path}")
    return EXIT_OK
