"""Merge what the units made, check the budget of bad records, and publish the manifest."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson

from data_prep import manifest
from data_prep.atomic import aside, file_sha256, publish, sync_directory, write_atomic
from data_prep.indexed import dtype_for
from data_prep.manifest import (
    Counts,
    FileEntry,
    Manifest,
    SegmentEntry,
    SourceEntry,
    TokenizerEntry,
    UnitEntry,
    Units,
)
from data_prep.plan import WORK, Plan
from data_prep.records import packed_lines
from data_prep.tally import UnitReport, quarantine_path, report_path
from data_prep.tokenizer import CONFIG_FILE, FILE, DocumentTokenizer
from data_prep.unit import unit_name
from runtime.errors import UserError

# Files that runs make; others in the directory are left alone.
_MADE = re.compile(
    r"(train|valid)_\d+\.(bin|idx|origin\.zst)|dropped_\d+\.jsonl\.zst|"
    r"quarantine(_\d+)?\.jsonl|units(_\d+)?\.json"
)


def commit(plan: Plan, old: Manifest | None) -> Manifest:
    """Make the finished units count, behind those of `old`. Raises UserError over the budget."""
    _refuse_changed_inputs(plan)
    output, batch = plan.output, plan.sources[-1].batch
    reports = [
        UnitReport.model_validate_json(report_path(plan.work, unit_name(unit.index)).read_bytes())
        for unit in plan.units[plan.first_unit :]
    ]
    units = (manifest.load_units(output, old) or []) if old else []
    units += _entries(units, reports)
    quarantine = output / _named("quarantine", batch, "jsonl")
    _write_quarantine(quarantine, plan, old, _quarantine(plan, reports, units))
    _enforce_budget(plan, units, quarantine)
    _move_files(plan, reports)
    listed = output / _named("units", batch, "json")
    write_atomic(listed, orjson.dumps(Units(units=units).model_dump()))
    if old is None:
        for name in (CONFIG_FILE, FILE):
            write_atomic(output / name, (plan.work / name).read_bytes())
    done = _manifest(plan, old, reports, _file_entry(quarantine), _file_entry(listed))
    manifest.save(done, output)
    return done


def tidy(plan: Plan, done: Manifest) -> None:
    """Keep the signatures and put away what the manifest does not name; may be done again."""
    if plan.signatures.exists():
        shutil.rmtree(plan.kept_signatures, ignore_errors=True)
        plan.signatures.replace(plan.kept_signatures)
    named = {entry.file for entry in done.files()}
    named.update(u.dropped.file for u in manifest.load_units(plan.output, done) or () if u.dropped)
    for path in plan.output.iterdir():
        if _MADE.fullmatch(path.name) and path.name not in named:
            path.unlink()
    # A straggler of another run may still write there: what it leaves is put away next time.
    shutil.rmtree(plan.output / WORK, ignore_errors=True)


def _move_files(plan: Plan, reports: list[UnitReport]) -> None:
    """Put the shards where the manifest will name them; those that are there already stay."""
    for report in reports:
        entries = [e for s in report.shards for e in (s, s.index, s.origins) if e]
        for entry in [*entries, *([report.dropped] if report.dropped else [])]:
            path = plan.work / entry.file
            if path.exists():
                path.replace(plan.output / entry.file)
    sync_directory(plan.output)


def _write_quarantine(path: Path, plan: Plan, old: Manifest | None, lines: Iterator[bytes]) -> None:
    temporary = aside(path)
    with temporary.open("wb") as stream:
        if old:
            with (plan.output / old.quarantine.file).open("rb") as before:
                shutil.copyfileobj(before, stream)
        stream.writelines(lines)
        publish(stream, temporary, path)


def _named(name: str, batch: int, suffix: str) -> str:
    """The files of the first batch have plain names; later ones must not replace them yet."""
    return f"{name}_{batch + 1}.{suffix}" if batch else f"{name}.{suffix}"


def _manifest(
    plan: Plan, old: Manifest | None, reports: list[UnitReport], bad: FileEntry, units: FileEntry
) -> Manifest:
    output = plan.output
    sources = _source_entries(plan, old, reports)
    splits: dict[str, Counts] = dict(old.splits) if old else {}
    changed = Counter(old.changed if old else {})
    for segment in (segment for report in reports for segment in report.segments):
        changed.update(segment.changed)
        for split, counts in segment.splits.items():
            splits[split] = splits.get(split, Counts()) + counts
    tokenizer = DocumentTokenizer(output, plan.config.tokenizer.eod)
    entry = _file_entry(output / FILE)
    shards = [*(old.shards if old else []), *(s for report in reports for s in report.shards)]
    dropped: Counter[str] = sum((Counter(s.dropped) for s in sources), Counter())
    return Manifest(
        schema=manifest.SCHEMA,
        fingerprint=manifest.fingerprint(plan.identity, entry.sha256, shards),
        dtype=dtype_for(tokenizer.vocab_size),
        documents=sum(counts.documents for counts in splits.values()),
        tokens=sum(counts.tokens for counts in splits.values()),
        sentences=plan.config.input.sentences,
        splits=splits,
        dropped=dict(sorted(dropped.items())),
        changed=dict(sorted(changed.items())),
        licences={**(old.licences if old else {}), **plan.config.stated_licences()},
        tokenizer=TokenizerEntry(
            **entry.model_dump(),
            config=_file_entry(output / CONFIG_FILE),
            vocab_size=tokenizer.vocab_size,
            eod=tokenizer.eod,
            eod_id=tokenizer.eod_id,
        ),
        quarantine=bad,
        units=units,
        shards=shards,
        sources=sources,
        plan=plan.identity,
    )


def _refuse_changed_inputs(plan: Plan) -> None:
    for source in plan.sources:
        if source.changed():
            raise UserError(
                f"{source.name} changed while it was read; delete {plan.output} and run again"
            )


def _entries(before: list[UnitEntry], reports: list[UnitReport]) -> list[UnitEntry]:
    """The units for units.json. A source's segments follow one another, within one batch."""
    lines: Counter[int] = Counter()
    found = []
    for report in reports:
        segments = []
        for own in report.segments:
            entry = SegmentEntry(
                source=own.source,
                start=own.start,
                end=own.end,
                first_line=lines[own.source],
                records=own.records,
                bad=own.bad,
            )
            segments.append(entry)
            lines[own.source] += own.lines
        found.append(UnitEntry(segments=segments, dropped=report.dropped))
    return found


def _quarantine(plan: Plan, reports: list[UnitReport], units: list[UnitEntry]) -> Iterator[bytes]:
    """Bad records of the new units, with line numbers counted from the start of their files."""
    for report in reports:
        for bad in packed_lines(quarantine_path(plan.work, unit_name(report.unit))):
            segment = units[report.unit].segments[bad["segment"]]
            record = {
                "file": plan.sources[segment.source].name,
                "line": bad["line"] + segment.first_line,
                "reason": bad["reason"],
                "excerpt": bad["excerpt"],
            }
            yield orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def _source_entries(
    plan: Plan, old: Manifest | None, reports: list[UnitReport]
) -> list[SourceEntry]:
    counts = [Counts() for _ in plan.sources]
    dropped: list[Counter[str]] = [Counter() for _ in plan.sources]
    for segment in (segment for report in reports for segment in report.segments):
        counts[segment.source] += sum(segment.splits.values(), Counts())
        dropped[segment.source].update(segment.bad)
        dropped[segment.source].update(segment.dropped)
    known = old.sources if old else []
    new = [
        SourceEntry(
            path=source.name,
            bytes=source.size,
            sha256=source.sha256,
            version=source.version,
            dropped=dict(sorted(dropped[number].items())),
            **counts[number].model_dump(),
        )
        for number, source in enumerate(plan.sources)
    ]
    return [*known, *new[len(known) :]]


def _enforce_budget(plan: Plan, units: list[UnitEntry], where: Path) -> None:
    segments = [segment for unit in units for segment in unit.segments]
    reasons: Counter[str] = sum((Counter(segment.bad) for segment in segments), Counter())
    bad, good = reasons.total(), sum(segment.records for segment in segments)
    if bad > plan.config.max_bad_fraction * (bad + good):
        told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
        raise UserError(
            f"{bad:,} of {bad + good:,} records cannot be used ({told}), more than "
            f"max_bad_fraction={plan.config.max_bad_fraction}; see {where}, then mend the input "
            "or raise max_bad_fraction"
        )
    if good == 0:
        raise UserError(f"no document was found in the {len(plan.sources)} input files")


def _file_entry(path: Path) -> FileEntry:
    return FileEntry(file=path.name, bytes=path.stat().st_size, sha256=file_sha256(path))
