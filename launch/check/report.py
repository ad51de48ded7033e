"""What a check found: facts and predictions in sections, errors and advice. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Row(NamedTuple):
    """One line of a section."""

    label: str
    value: str
    interval: str = ""
    is_total: bool = False


class Section(NamedTuple):
    """Lines that belong together."""

    title: str
    rows: list[Row]
    note: str = ""


class Finding(NamedTuple):
    """Something to change: an error stops the run, advice does not."""

    level: Literal["error", "advice"]
    key: str
    message: str


@dataclass
class Report:
    """Everything that is printed, and the same as numbers."""

    subject: str
    stage: str
    target: str
    sections: list[Section] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def error(self, key: str, message: str) -> None:
        """Note what would stop the run."""
        self.findings.append(Finding("error", key, message))

    def advise(self, key: str, message: str) -> None:
        """Note what could be better."""
        self.findings.append(Finding("advice", key, message))

    @property
    def errors(self) -> list[Finding]:
        """What stops the run."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def advice(self) -> list[Finding]:
        """What could be better."""
        return [finding for finding in self.findings if finding.level == "advice"]

    def as_json(self) -> dict[str, Any]:
        """For programs: numbers in bytes, seconds and tokens."""
        return {
            "config": self.subject,
            "stage": self.stage,
            "target": self.target,
            "good": not self.errors,
            "errors": [_plain(finding) for finding in self.errors],
            "advice": [_plain(finding) for finding in self.advice],
            **self.numbers,
        }

    def rows(self) -> Iterator[Row]:
        """All lines, of whichever section."""
        for section in self.sections:
            yield from section.rows


def _plain(finding: Finding) -> dict[str, str]:
    return {"key": finding.key, "message": finding.message}
