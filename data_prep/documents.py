"""The documents of a unit, in order: read, then cleaned; and those that do not get through."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep import dedup
from data_prep.clean import Cleaner
from data_prep.decontaminate import Contamination
from data_prep.plan import Plan
from data_prep.readers import BadRecord, Document, SegmentReader
from data_prep.readers.records import EXCERPT_CHARACTERS
from data_prep.records import Decision, PackedLines, packed_lines


class SegmentEnd(NamedTuple):
    """Comes after the last record of a segment."""

    lines: int
    records: int  # those that could be read
    text_bytes: int  # of these, before any rule


class Changed(NamedTuple):
    """Comes before a document that a rule has changed."""

    rule: str


class Cut(NamedTuple):
    """Comes before a document that a rule has taken something out of."""

    decision: Decision


Item = Document | BadRecord | Decision | Changed | Cut | SegmentEnd


class Screen:
    """The rules of a run, for one document after another."""

    def __init__(self, plan: Plan) -> None:
        config = plan.config
        self._cleaner = Cleaner(config.clean) if config.clean else None
        self._contamination: Contamination | None = None
        if config.decontaminate.is_on:
            self._contamination = Contamination.load(plan.contamination)

    def __call__(self, segment: int, document: Document) -> Iterator[Document | Decision | Changed]:
        """Yield the document as the rules leave it, or the decision against it."""
        text = document.text
        changed: list[str] = []
        if self._cleaner:
            cleaned, dropped, changed = self._cleaner(text, document.url)
            if dropped:
                yield _decision(segment, document, dropped)
                return
            assert cleaned is not None, "a cleaner keeps a document or says why not"
            text = cleaned
        found = self._contamination.find(text) if self._contamination else None
        if found:
            where = f"{found.file}:{found.line}"
            yield _decision(
                segment, document, ("decontaminate", "test_text", f"{where}: {found.words}")
            )
            return
        yield from (Changed(rule) for rule in changed)
        yield document._replace(text=text)


def _decision(segment: int, document: Document, why: tuple[str, str, str]) -> Decision:
    rule, reason, value = why
    excerpt = document.text[:EXCERPT_CHARACTERS]
    return Decision(segment, document.line, rule, reason, value, excerpt)


def read_unit(plan: Plan, unit: int, screen: Screen) -> Iterator[tuple[int, Item]]:
    """Yield (segment of the unit, record) for all that the unit's inputs hold."""
    for number, segment in enumerate(plan.units[unit].segments):
        reader = SegmentReader(plan.sources[segment.source], segment, plan.config.input)
        records = text_bytes = 0
        for record in reader:
            if isinstance(record, BadRecord):
                yield number, record
            else:
                records += 1
                text_bytes += len(record.text.encode("utf-8"))
                yield from ((number, item) for item in screen(number, record))
        yield number, SegmentEnd(reader.lines, records, text_bytes)


class DocumentStore:
    """Cleaned documents on disk, between the stages of a run that looks for duplicates."""

    def __init__(self, path: Path) -> None:
        self._lines = PackedLines(path)

    def __enter__(self) -> "DocumentStore":
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()

    def add(self, segment: int, document: Document) -> None:
        """Append one document."""
        self._lines.add((segment, *document[:4]))

    def finish(self) -> None:
        """Make the file durable and visible."""
        self._lines.finish()


def store_path(plan: Plan, unit: int) -> Path:
    """Where a unit's cleaned documents lie until the shards are made."""
    return plan.work / f"documents_{unit:05d}.jsonl.zst"


def unique_documents(plan: Plan, unit: int) -> Iterator[tuple[int, Document | Decision | Cut]]:
    """Yield (segment of the unit, record) for what a `DocumentStore` holds, without repetitions."""
    found = dedup.duplicates(plan.signatures, unit)
    options = plan.config.dedup.paragraphs
    for number, (segment, text, source, line, offset) in enumerate(
        packed_lines(store_path(plan, unit))
    ):
        document = Document(text, source, line, offset)
        twin = found.documents.get(number)
        if twin:
            value = f"similarity {twin.similarity:.2f}"
            yield segment, _duplicate(segment, document, twin.kind, value, twin)
            continue
        removed = found.paragraphs.get(number)
        if removed:
            value = f"{len(removed)} paragraphs"
            decision = _duplicate(segment, document, "paragraphs", value, removed[0])
            text = dedup.remove_paragraphs(document.text, [p.paragraph for p in removed], options)
            if not text:
                yield segment, decision
                continue
            yield segment, Cut(decision)
            document = document._replace(text=text)
        yield segment, document


def _duplicate(
    segment: int,
    document: Document,
    reason: str,
    value: str,
    of: "dedup.Duplicate | dedup.RemovedParagraph",
) -> Decision:
    why = _decision(segment, document, ("duplicate", reason, value))
    return why._replace(duplicate_of=(of.unit, of.document))
