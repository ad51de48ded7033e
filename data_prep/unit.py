"""One unit of work: a pure function of (plan, unit) that writes shards and a report on them.

The report is published last. A unit counts as done when its report is there.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import orjson
import pydantic

from data_prep.atomic import write_atomic
from data_prep.indexed import ShardWriter, Tokens
from data_prep.manifest import Counts, ShardEntry
from data_prep.plan import Plan, Unit
from data_prep.readers import BadRecord, Document, SegmentReader
from data_prep.sentences import sentences
from data_prep.split import Splitter
from data_prep.tokenizer import DocumentTokenizer
from runtime.errors import UserError

_BATCH_CHARACTERS = 1 << 20


class SourceReport(pydantic.BaseModel):
    """What one segment of a source gave."""

    source: int
    lines: int
    records: int = 0  # good ones; one may give a document to each split
    splits: dict[str, Counts] = {}
    dropped: dict[str, int] = {}


class UnitReport(pydantic.BaseModel):
    """What a unit made; the bad records are in a file beside it."""

    unit: int
    shards: list[ShardEntry]
    segments: list[SourceReport]


class UnitTask:
    """`run_unit` with its plan, in the form that executors send to worker processes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._tokenizer: DocumentTokenizer | None = None

    def __call__(self, unit: int) -> UnitReport:
        """Run one unit. Raises UserError for unreadable inputs and a full disk."""
        if self._tokenizer is None:
            self._tokenizer = DocumentTokenizer(self.plan.work, self.plan.config.tokenizer.eod)
        try:
            return _Run(self.plan, self.plan.units[unit], self._tokenizer).run()
        except OSError as error:
            raise UserError(
                f"{self.plan.output}: cannot be written: {error.strerror or error}; mend that and "
                "run the same command again: finished work is kept"
            ) from error


def report_path(work: Path, unit: int) -> Path:
    """Where a unit's report lies."""
    return work / f"unit_{unit:05d}.json"


def quarantine_path(work: Path, unit: int) -> Path:
    """Where a unit's bad records lie, one JSON object a line."""
    return work / f"unit_{unit:05d}.quarantine.jsonl"


class _Run:
    def __init__(self, plan: Plan, unit: Unit, tokenizer: DocumentTokenizer) -> None:
        self._plan, self._unit, self._tokenizer = plan, unit, tokenizer
        self._writers: dict[str, ShardWriter] = {}
        self._batch: list[tuple[Document, str, str]] = []  # document, split, text of that split
        self._batch_characters = 0
        self._bad: list[BadRecord] = []
        self._counts: dict[str, Counts] = {}

    def run(self) -> UnitReport:
        with ExitStack() as stack:
            segments = [self._segment(number, stack) for number in range(len(self._unit.segments))]
            shards = [writer.finish() for _, writer in sorted(self._writers.items())]
        report = UnitReport(unit=self._unit.index, shards=shards, segments=segments)
        work = self._plan.work
        lines = b"".join(
            orjson.dumps(bad._asdict(), option=orjson.OPT_APPEND_NEWLINE) for bad in self._bad
        )
        write_atomic(quarantine_path(work, self._unit.index), lines)
        write_atomic(
            report_path(work, self._unit.index), orjson.dumps(report.model_dump(mode="json"))
        )
        return report

    def _segment(self, number: int, stack: ExitStack) -> SourceReport:
        segment = self._unit.segments[number]
        source = self._plan.sources[segment.source]
        splitter = Splitter(self._plan.config, source)
        self._counts = {}
        bad_before, good = len(self._bad), 0
        reader = SegmentReader(source, segment, self._plan.config.input)
        for record in reader:
            if isinstance(record, BadRecord):
                self._bad.append(record)
                continue
            good += 1
            for split, text in splitter(record):
                self._batch.append((record, split, text))
                self._batch_characters += len(text)
            if self._batch_characters >= _BATCH_CHARACTERS:
                self._flush(stack)
        self._flush(stack)
        bad = self._bad[bad_before:]
        empty = sum(record.reason == "no_tokens" for record in bad)
        return SourceReport(
            source=segment.source,
            lines=reader.lines,
            records=good - empty,
            splits=self._counts,
            dropped=dict(Counter(record.reason for record in bad)),
        )

    def _flush(self, stack: ExitStack) -> None:
        """Tokenise the batch and append it to the shards."""
        tokenizer = self._tokenizer
        texts = [text for _, _, text in self._batch]
        encoded: Iterable[tuple[Tokens, Tokens | None]]
        if self._plan.config.input.sentences:
            encoded = tokenizer.encode_sentences([sentences(text) for text in texts])
        else:
            encoded = ((ids, None) for ids in tokenizer.encode(texts))
        for (record, split, text), (ids, ends) in zip(self._batch, encoded, strict=True):
            if not len(ids):
                bad = BadRecord(record.source, record.line, "no_tokens", text[:160])
                self._bad.append(bad)
                continue
            if split not in self._writers:
                name = f"{split}_{self._unit.index:05d}"
                writer = ShardWriter(self._plan.output, name, split, tokenizer.vocab_size)
                self._writers[split] = stack.enter_context(writer)
            if ends is not None:
                ends[-1] += 1  # the end-of-document token belongs to the last sentence
            self._writers[split].add(np.append(ids, np.int32(tokenizer.eod_id)), ends)
            unknown = (
                0 if tokenizer.unknown_id is None else int((ids == tokenizer.unknown_id).sum())
            )
            self._counts[split] = self._counts.get(split, Counts()) + Counts(
                documents=1,
                tokens=len(ids) + 1,
                text_bytes=len(text.encode("utf-8")),
                unknown_tokens=unknown,
            )
        self._batch, self._batch_characters = [], 0
