"""`python -m finetune report RUN`: what a finished run has learned, as a page to read."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import orjson

from finetune.report import blocks
from finetune.report.run_files import RunFiles, confused_pairs, read_run, read_texts
from finetune.report.run_page import page
from runtime.errors import EXIT_OK


def main(arguments: list[str]) -> int:
    """Write the pages of each run; exit status as of every command."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune report",
        description="Write report.html and report.md of finished fine-tuning runs, and complete "
        "their report.json. Every run does so at its end.",
    )
    parser.add_argument("run", nargs="+", type=Path, help="run directory")
    for directory in parser.parse_args(arguments).run:
        run = read_run(directory)
        read_texts(run)
        print(f"wrote {_write(run)}")
    return EXIT_OK


def write_report(directory: Path, texts: Sequence[str]) -> None:
    """Write the pages of a run that has just ended; texts: of its scored examples. UserError."""
    _write(read_run(directory, texts))


def _write(run: RunFiles) -> Path:
    if run.calibration.count:
        run.report["calibration"] = run.calibration.as_json()
    if pairs := list(confused_pairs(run.report)):
        run.report["most_confused"] = pairs
    plain = orjson.dumps(run.report, option=orjson.OPT_INDENT_2).decode()
    blocks.write(run.directory / "report.json", plain)
    found = page(run)
    blocks.write(run.directory / "report.md", blocks.to_markdown(found))
    title = f"{run.directory.resolve().name}: fine-tuning report"
    path = run.directory / "report.html"
    blocks.write(path, blocks.to_html(title, found))
    return path
