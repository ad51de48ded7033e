"""What a unit's records came to: counts for each segment, bad records, decisions of rules."""

from pathlib import Path

import orjson
import pydantic

from data_prep.atomic import write_atomic
from data_prep.manifest import Counts, FileEntry, ShardEntry
from data_prep.readers import BadRecord, Document
from data_prep.readers.records import EXCERPT_CHARACTERS
from data_prep.records import Decision, PackedLines, packed_lines


class SegmentReport(pydantic.BaseModel):
    """What one segment of a source gave."""

    source: int
    start: int  # bytes
    end: int
    lines: int = 0
    records: int = 0  # readable ones; one may give a document to each split
    text_bytes: int = 0  # of these, before any rule
    splits: dict[str, Counts] = {}
    bad: dict[str, int] = {}
    dropped: dict[str, int] = {}  # by rules
    changed: dict[str, int] = {}  # documents that a rule changed


class UnitReport(pydantic.BaseModel):
    """What a unit made; its bad records are in a file beside it."""

    unit: int
    segments: list[SegmentReport]
    shards: list[ShardEntry] = []
    dropped: FileEntry | None = None  # the file of decisions


class Tally:
    """Counts a unit's records and writes down those that do not get through.

    `name`: the stage, which the files are called by. Use it as a context, then `finish`.
    """

    def __init__(
        self, work: Path, name: str, segments: list[SegmentReport], decisions: Path | None
    ) -> None:
        self.segments = segments
        self._work, self._name = work, name
        self._bad = PackedLines(quarantine_path(work, name))
        self._decisions = PackedLines(decisions) if decisions else None

    def __enter__(self) -> "Tally":
        return self

    def __exit__(self, *error: object) -> None:
        self._bad.close()
        if self._decisions:
            self._decisions.close()

    def go_on_from(self, work: Path, name: str) -> None:
        """Take over what an earlier stage counted and wrote down."""
        report = UnitReport.model_validate_json(report_path(work, name).read_bytes())
        self.segments = report.segments
        for line in packed_lines(quarantine_path(work, name)):
            self._bad.add(line)
        if self._decisions and report.dropped:
            for line in packed_lines(work / report.dropped.file):
                self._decisions.add(line)

    def bad(self, segment: int, record: BadRecord) -> None:
        """Note a record that cannot be used."""
        _, line, reason, excerpt = record
        self._bad.add({"segment": segment, "line": line, "reason": reason, "excerpt": excerpt})
        _add(self.segments[segment].bad, record.reason)

    def dropped(self, decision: Decision) -> None:
        """Note a document that a rule left out."""
        self._write(decision)
        _add(self.segments[decision.segment].dropped, decision.name)

    def cut(self, decision: Decision) -> None:
        """Note a document that a rule shortened."""
        self._write(decision)
        self.changed(decision.segment, decision.name)

    def changed(self, segment: int, rule: str) -> None:
        """Count a document that a rule changed."""
        _add(self.segments[segment].changed, rule)

    def unusable(self, segment: int, document: Document, reason: str, text: str) -> None:
        """Note a record that could be read and is of no use for all that."""
        excerpt = text[:EXCERPT_CHARACTERS]
        self.bad(segment, BadRecord(document.source, document.line, reason, excerpt))
        self.segments[segment].records -= 1

    def kept(self, segment: int, split: str, counts: Counts) -> None:
        """Count what is in the shards now."""
        splits = self.segments[segment].splits
        splits[split] = splits.get(split, Counts()) + counts

    def finish(self, unit: int, shards: list[ShardEntry]) -> UnitReport:
        """Publish everything; the report last, for a stage of a unit is done when it is there."""
        report = UnitReport(
            unit=unit,
            segments=self.segments,
            shards=shards,
            dropped=self._decisions.finish() if self._decisions else None,
        )
        self._bad.finish()
        write_atomic(
            report_path(self._work, self._name), orjson.dumps(report.model_dump(mode="json"))
        )
        return report

    def _write(self, decision: Decision) -> None:
        assert self._decisions is not None, "a run with rules has a file for their decisions"
        self._decisions.add(decision._asdict())


def report_path(work: Path, name: str) -> Path:
    """Where the report of a stage of a unit lies; `name` is such as unit_00012."""
    return work / f"{name}.json"


def quarantine_path(work: Path, name: str) -> Path:
    """Where its bad records lie, one JSON object a line."""
    return work / f"{name}.quarantine.jsonl.zst"


def _add(counter: dict[str, int], name: str) -> None:
    counter[name] = counter.get(name, 0) + 1
