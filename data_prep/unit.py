"""The two stages that work on units: pure functions of (plan, unit) that publish a report last.

A run that looks for duplicates cleans first, into `.work`, with what each document contributes to
the search; between the two, `data_prep.dedup` finds the duplicates. Any other run makes the
shards at once.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from data_prep.atomic import disk_errors
from data_prep.dedup import SignatureWriter
from data_prep.documents import (
    Changed,
    Cut,
    DocumentStore,
    Item,
    Screen,
    SegmentEnd,
    read_unit,
    store_path,
    unique_documents,
)
from data_prep.indexed import ShardWriter
from data_prep.manifest import Counts, ShardEntry
from data_prep.origins import OriginWriter
from data_prep.plan import Plan, Unit
from data_prep.readers import BadRecord, Document
from data_prep.records import Decision
from data_prep.sentences import sentences
from data_prep.split import Splitter
from data_prep.tally import SegmentReport, Tally, UnitReport
from data_prep.tokenizer import DocumentTokenizer
from data_prep.tokenizer_batches import EncodersDifferError

_BATCH_CHARACTERS = 1 << 20


def clean_name(unit: int) -> str:
    """What the files of a cleaned unit are called."""
    return f"clean_{unit:05d}"


def unit_name(unit: int) -> str:
    """What the files of a finished unit are called."""
    return f"unit_{unit:05d}"


def dropped_name(unit: int) -> str:
    """The file of the decisions about a unit's documents."""
    return f"dropped_{unit:05d}.jsonl.zst"


class CleanTask:
    """Read and clean a unit, and note what finds its duplicates."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._screen: Screen | None = None

    def __call__(self, unit: int) -> UnitReport:
        """Run one unit. Raises UserError for unreadable inputs and a full disk."""
        plan, work = self.plan, self.plan.work
        if self._screen is None:  # not copied to other processes: it may be large
            self._screen = Screen(plan)
        with (
            disk_errors(plan.output),
            Tally(
                work,
                clean_name(unit),
                _reports(plan.units[unit]),
                work / f"clean_{dropped_name(unit)}",
            ) as tally,
            DocumentStore(store_path(plan, unit)) as store,
            SignatureWriter(plan.signatures, unit, plan.config.dedup) as signatures,
        ):
            for segment, item in read_unit(plan, unit, self._screen):
                if isinstance(item, Document):
                    signatures.add(item.text)
                    store.add(segment, item)
                else:
                    note(tally, segment, item)
            store.finish()
            signatures.finish()
            return tally.finish(unit, [])


class ShardTask:
    """Tokenise a unit's documents into shards."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._tokenizer: DocumentTokenizer | None = None
        self._screen: Screen | None = None

    def __call__(self, unit: int) -> UnitReport:
        """Run one unit. Raises UserError for unreadable inputs and a full disk."""
        plan = self.plan
        if self._tokenizer is None:
            choice = plan.config.tokenizer
            self._tokenizer = DocumentTokenizer(plan.work, choice.eod, choice.backend)
        if self._screen is None and not plan.config.dedup.is_on:
            self._screen = Screen(plan)
        with disk_errors(plan.output):
            try:
                self._tokenizer.begin_unit(unit)
                return self._make(unit, self._tokenizer)
            except EncodersDifferError as error:
                print(f"unit {unit}: {error}; encoded by tokenizers instead", file=sys.stderr)
                self._tokenizer.begin_unit(unit, is_fast=False)
                return self._make(unit, self._tokenizer)

    def _make(self, unit: int, tokenizer: DocumentTokenizer) -> UnitReport:
        plan = self.plan
        decisions = plan.work / dropped_name(unit) if plan.config.has_rules else None
        with (
            Tally(plan.work, unit_name(unit), _reports(plan.units[unit]), decisions) as tally,
            _Shards(plan, unit, tokenizer, tally) as shards,
        ):
            if self._screen:
                items: Iterator[tuple[int, Item]] = read_unit(plan, unit, self._screen)
            else:
                tally.go_on_from(plan.work, clean_name(unit))
                items = unique_documents(plan, unit)
            for segment, item in items:
                if isinstance(item, Document):
                    shards.add(segment, item)
                else:
                    note(tally, segment, item)
            return tally.finish(unit, shards.finish())


def note(
    tally: Tally, segment: int, item: BadRecord | Decision | Changed | Cut | SegmentEnd
) -> None:
    """Count what is no document."""
    if isinstance(item, BadRecord):
        tally.bad(segment, item)
    elif isinstance(item, Decision):
        tally.dropped(item)
    elif isinstance(item, Cut):
        tally.cut(item.decision)
    elif isinstance(item, Changed):
        tally.changed(segment, item.rule)
    else:
        own = tally.segments[segment]
        own.lines, own.text_bytes = item.lines, item.text_bytes
        own.records += item.records  # of which some may be found to be of no use, and taken off


class _Shards:
    """The shards of a unit, one for each split that has documents."""

    def __init__(self, plan: Plan, unit: int, tokenizer: DocumentTokenizer, tally: Tally) -> None:
        self._plan, self._unit, self._tokenizer, self._tally = plan, unit, tokenizer, tally
        self._splitters = [
            Splitter(plan.config, plan.sources[segment.source])
            for segment in plan.units[unit].segments
        ]
        self._batches: dict[str, _Batch] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, segment: int, document: Document) -> None:
        """Add a document to the shard of its split, or its parts to those of theirs."""
        for split, text in self._splitters[segment](document):
            batch = self._batches.get(split)
            if batch is None:
                batch = self._batches[split] = self._begin(split)
            batch.segments.append(segment)
            batch.documents.append(document)
            batch.texts.append(text)
            batch.characters += len(text)
            if batch.characters >= _BATCH_CHARACTERS:
                self._flush(split, batch)

    def finish(self) -> list[ShardEntry]:
        """Make all files durable and visible, and describe them."""
        found = []
        for split, batch in sorted(self._batches.items()):
            if batch.texts:
                self._flush(split, batch)
            if batch.origins.count:
                entry = batch.writer.finish()
                origins = batch.origins.finish()
                found.append(entry.model_copy(update={"unit": self._unit, "origins": origins}))
        return found

    def _begin(self, split: str) -> "_Batch":
        name = f"{split}_{self._unit:05d}"
        folder = self._plan.work
        writer = ShardWriter(folder, name, split, self._tokenizer.vocab_size)
        self._stack.enter_context(writer)
        return _Batch(writer, OriginWriter(folder / f"{name}.origin.zst"))

    def _flush(self, split: str, batch: "_Batch") -> None:
        """Tokenise a batch and append it to its shard."""
        if self._plan.config.input.sentences:
            cut = [sentences(text) for text in batch.texts]
            encoded = self._tokenizer.encode_sentence_batch(cut)
        else:
            encoded = self._tokenizer.encode_batch(batch.texts)
        batch.writer.add_many(
            encoded.ids, encoded.lengths, encoded.sentences, encoded.sentence_counts
        )
        is_kept = encoded.lengths > 0
        for number in np.flatnonzero(~is_kept).tolist():
            reason = "not_encodable" if encoded.lost[number] else "no_tokens"
            self._tally.unusable(
                batch.segments[number], batch.documents[number], reason, batch.texts[number]
            )
        segments = np.array(batch.segments)
        lines = np.array([document.line for document in batch.documents])
        batch.origins.add_many(segments[is_kept], lines[is_kept])
        sizes = np.array([len(text.encode("utf-8")) for text in batch.texts])
        for segment in np.unique(segments).tolist():
            own = is_kept & (segments == segment)
            counts = Counts(
                documents=int(own.sum()),
                tokens=int(encoded.lengths[own].sum()),
                text_bytes=int(sizes[own].sum()),
                unknown_tokens=int(encoded.unknown[own].sum()),
            )
            if counts.documents:
                self._tally.kept(segment, split, counts)
        batch.clear()


@dataclass
class _Batch:
    writer: ShardWriter
    origins: OriginWriter
    segments: list[int] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    characters: int = 0

    def clear(self) -> None:
        self.segments, self.documents, self.texts, self.characters = [], [], [], 0


def _reports(unit: Unit) -> list[SegmentReport]:
    return [SegmentReport(source=s.source, start=s.start, end=s.end) for s in unit.segments]
