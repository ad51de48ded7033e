"""A report as text: coloured on a terminal, plain elsewhere, as wide as there is room."""

import os
import shutil
import textwrap
from typing import TextIO

from launch.check.report import Finding, Report, Row, Section

_BOLD, _DIM, _RED, _YELLOW, _GREEN = "1", "2", "1;31", "33", "1;32"
LEAST_WIDTH, MOST_WIDTH = 60, 120
_LABELS = 16  # columns that labels have


def is_coloured(stream: TextIO) -> bool:
    """Whether a terminal reads this (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width_of(stream: TextIO) -> int:
    """Columns to write in: the terminal's, or 80 where there is none."""
    columns = shutil.get_terminal_size((80, 24)).columns if stream.isatty() else _columns(80)
    return max(LEAST_WIDTH, min(MOST_WIDTH, columns))


def _columns(default: int) -> int:
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdigit() and int(given) > 0 else default


class Page:
    """Lines of a report, so wide at most."""

    def __init__(self, width: int, *, colour: bool) -> None:
        self._width, self._colour = width, colour
        self._lines: list[str] = []

    def text(self, report: Report) -> str:
        """The whole report, the verdict last, where a terminal stands still."""
        self._add(report.subject, _BOLD)
        self._add(f"{report.stage}, {report.target}")
        for section in report.sections:
            self._section(section)
        for finding in (*report.errors, *report.advice):
            self._finding(finding)
        self._lines.append("")
        if report.errors:
            what = "error" if len(report.errors) == 1 else "errors"
            self._add(f"not good: {len(report.errors)} {what}; the run would not start", _RED)
        else:
            told = f", {len(report.advice)} pieces of advice" if len(report.advice) > 1 else ""
            told = ", one piece of advice" if len(report.advice) == 1 else told
            self._add(f"good{told}", _GREEN)
        return "\n".join(self._lines)

    def _section(self, section: Section) -> None:
        self._lines.append("")
        self._add(section.title, _BOLD)
        values = max((len(row.value) for row in section.rows if row.interval), default=0)
        labels = max(_LABELS, *(len(row.label) for row in section.rows))
        for row in section.rows:
            self._row(row, labels, values)
        if section.note:
            for line in textwrap.wrap(section.note, self._width - 2):
                self._add(f"  {line}", _DIM)

    def _row(self, row: Row, labels: int, values: int) -> None:
        start = f"  {row.label:<{labels}}  "
        value = f"{row.value:>{values}}" if row.interval else row.value
        room = self._width - len(start)
        told = f"{value}   {row.interval}" if row.interval else value
        wrapped = textwrap.wrap(
            told, room, drop_whitespace=True, break_long_words=False, initial_indent=""
        )
        if row.interval and len(wrapped) == 1:
            wrapped = [told]  # textwrap takes leading spaces away
        for index, line in enumerate(wrapped or [""]):
            lead = start if index == 0 else " " * len(start)
            self._add(f"{lead}{line}".rstrip(), _BOLD if row.is_total else "")

    def _finding(self, finding: Finding) -> None:
        is_error = finding.level == "error"
        self._lines.append("")
        head = "error " if is_error else "advice"
        key = f"{finding.key}: " if finding.key else ""
        wrapped = textwrap.wrap(f"{key}{finding.message}", self._width - 8, break_on_hyphens=False)
        for index, line in enumerate(wrapped):
            lead = self._paint(f"{head}  ", _RED if is_error else _YELLOW)
            self._lines.append((lead if index == 0 else " " * 8) + line)

    def _add(self, text: str, style: str = "") -> None:
        self._lines.append(self._paint(text, style))

    def _paint(self, text: str, style: str) -> str:
        return f"\033[{style}m{text}\033[0m" if style and self._colour else text
