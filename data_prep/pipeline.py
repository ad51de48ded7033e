"""Prepare a directory of shards: plan → tokenizer → units → manifest.

Every step leaves either nothing or a finished file, so that the same command goes on wherever
an earlier one was stopped; the manifest comes last, and without it the directory is no data.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson
import pydantic

from data_prep import manifest
from data_prep.atomic import file_sha256, locked, remove_leftovers, write_atomic
from data_prep.builtin import write_corpus
from data_prep.config import DataPrepConfig
from data_prep.executors.local import available_cores, map_units
from data_prep.indexed import dtype_for
from data_prep.input_config import BUILTIN
from data_prep.manifest import Counts, FileEntry, Manifest, SourceEntry, TokenizerEntry
from data_prep.plan import Plan, difference, make_plan
from data_prep.progress import Progress
from data_prep.sources import input_files
from data_prep.tokenizer import CONFIG_FILE, FILE, DocumentTokenizer, default_config
from data_prep.tokenizer_config import tokenizer_file
from data_prep.training_text import training_texts
from data_prep.unit import UnitReport, UnitTask, quarantine_path, report_path
from data_prep.verify import size_problems
from runtime.errors import UserError

_QUARANTINE = "quarantine.jsonl"
_PLAN = "plan.json"


def prepare(config: DataPrepConfig) -> Manifest:
    """Make `config.output`, or return at once where it is already made from the same plan.

    Raises UserError: unreadable input, too many bad records, another plan or run in the output.
    """
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be made: {error.strerror}") from error
    with locked(output):
        _refuse_foreign(output)
        remove_leftovers(output)
        if BUILTIN in config.input.paths:
            write_corpus(output / "builtin")
        plan = make_plan(config, input_files(config, output / "builtin" / "corpus.jsonl"))
        if (output / manifest.NAME).exists():
            return _finished(plan)
        _start_or_go_on(plan)
        started = time.monotonic()
        goes_on = any(plan.work.glob("unit_*.json"))
        _make_tokenizer(plan)
        reports = _run_units(plan)
        done = _commit(plan, reports)
        shutil.rmtree(plan.work)
    text_bytes = sum(counts.text_bytes for counts in done.splits.values())
    seconds = time.monotonic() - started
    rate = "" if goes_on else f", {text_bytes / 1e6 / seconds:.1f} MB/s"
    print(f"prepared {output} in {seconds:.1f} s{rate}")
    _print_counts(done)
    return done


def _refuse_foreign(output: Path) -> None:
    ours = (output / manifest.NAME).exists() or (output / ".work").exists()
    names = [p.name for p in output.iterdir() if not p.name.startswith(".")]
    if not ours and set(names) - {"builtin"}:
        raise UserError(
            f"{output} holds other files (such as {sorted(names)[0]}); choose an empty directory"
        )


def _finished(plan: Plan) -> Manifest:
    found = manifest.load(plan.output)
    _refuse_other_plan(plan, found.plan)
    problem = next(size_problems(plan.output, found), None)
    if problem:
        raise UserError(f"{problem} (delete {plan.output} first)")
    shutil.rmtree(plan.work, ignore_errors=True)
    print(
        f"already prepared: {plan.output} ({found.documents:,} documents, {found.tokens:,} tokens)"
    )
    return found


def _start_or_go_on(plan: Plan) -> None:
    path = plan.work / _PLAN
    if path.exists():
        _refuse_other_plan(plan, orjson.loads(path.read_bytes()))
    else:
        plan.work.mkdir(exist_ok=True)
        write_atomic(path, manifest.to_json(plan.identity))
    remove_leftovers(plan.work)


def _refuse_other_plan(plan: Plan, old: dict[str, object]) -> None:
    changed = difference(old, plan.identity)
    if changed:
        raise UserError(
            f"{plan.output} was made from another plan: {changed}; choose another output "
            "or delete that directory"
        )


def _make_tokenizer(plan: Plan) -> None:
    """Put tokenizer.json and its config into the work directory, trained or copied."""
    if (plan.work / FILE).exists():
        return
    choice = plan.config.tokenizer
    if choice.path is None:
        from data_prep.tokenizer_train import train

        print(f"training the {choice.train.kind} tokenizer …", flush=True)
        train(choice.train, training_texts(plan), plan.work)
        return
    path = tokenizer_file(choice.path)
    assert path is not None, "config.check refuses a missing tokenizer"
    beside = path.with_name(CONFIG_FILE)
    tokenizer = DocumentTokenizer(path.parent, choice.eod)
    if beside.exists():
        write_atomic(plan.work / CONFIG_FILE, beside.read_bytes())
    else:
        own = orjson.dumps(default_config(tokenizer.eod), option=orjson.OPT_INDENT_2) + b"\n"
        write_atomic(plan.work / CONFIG_FILE, own)
    write_atomic(plan.work / FILE, path.read_bytes())


def _run_units(plan: Plan) -> list[UnitReport]:
    """Run the units that are not done yet; every unit's report, in order."""
    reports: dict[int, UnitReport] = {}
    for unit in plan.units:
        report = _done_before(plan, unit.index)
        if report is not None:
            reports[unit.index] = report
    left = [unit.index for unit in plan.units if unit.index not in reports]
    if reports:
        print(f"going on: {len(reports)} of {len(plan.units)} units are done", flush=True)
    workers = plan.config.workers or available_cores()
    with Progress("tokenising", sum(plan.units[unit].weight for unit in left)) as progress:
        for report in map_units(UnitTask(plan), left, workers):
            reports[report.unit] = report
            progress.advance(plan.units[report.unit].weight)
    return [reports[unit.index] for unit in plan.units]


def _done_before(plan: Plan, unit: int) -> UnitReport | None:
    """The report of a finished unit whose files are all there."""
    path = report_path(plan.work, unit)
    try:
        report = UnitReport.model_validate_json(path.read_bytes())
        for entry in [e for shard in report.shards for e in (shard, shard.index)]:
            if (plan.output / entry.file).stat().st_size != entry.bytes:
                return None
        return report if quarantine_path(plan.work, unit).exists() else None
    except (FileNotFoundError, pydantic.ValidationError):
        return None


def _commit(plan: Plan, reports: list[UnitReport]) -> Manifest:
    """Merge the units' reports, check the budget of bad records, and publish the manifest."""
    _refuse_changed_inputs(plan)
    output = plan.output
    write_atomic(output / _QUARANTINE, b"".join(_quarantine(plan, reports)))
    sources = _source_entries(plan, reports)
    dropped: Counter[str] = sum((Counter(s.dropped) for s in sources), Counter())
    segments = [segment for report in reports for segment in report.segments]
    _enforce_budget(plan, dropped, sum(segment.records for segment in segments))
    for name in (CONFIG_FILE, FILE):
        write_atomic(output / name, (plan.work / name).read_bytes())
    splits: dict[str, Counts] = {}
    for segment in segments:
        for split, counts in segment.splits.items():
            splits[split] = splits.get(split, Counts()) + counts
    tokenizer = DocumentTokenizer(output, plan.config.tokenizer.eod)
    entry = _file_entry(output / FILE)
    shards = [shard for report in reports for shard in report.shards]
    done = Manifest(
        schema=manifest.SCHEMA,
        fingerprint=manifest.fingerprint(plan.identity, entry.sha256, shards),
        dtype=dtype_for(tokenizer.vocab_size),
        documents=sum(counts.documents for counts in splits.values()),
        tokens=sum(counts.tokens for counts in splits.values()),
        sentences=plan.config.input.sentences,
        splits=splits,
        dropped=dict(dropped),
        tokenizer=TokenizerEntry(
            **entry.model_dump(),
            config=_file_entry(output / CONFIG_FILE),
            vocab_size=tokenizer.vocab_size,
            eod=tokenizer.eod,
            eod_id=tokenizer.eod_id,
        ),
        quarantine=_file_entry(output / _QUARANTINE),
        shards=shards,
        sources=sources,
        plan=plan.identity,
    )
    manifest.save(done, output)
    return done


def _refuse_changed_inputs(plan: Plan) -> None:
    for source in plan.sources:
        if source.changed():
            raise UserError(
                f"{source.name} changed while it was read; delete {plan.output} and run again"
            )


def _quarantine(plan: Plan, reports: list[UnitReport]) -> Iterator[bytes]:
    """Bad records of all units, with line numbers counted from the start of their files."""
    lines_before: Counter[int] = Counter()
    for report in reports:
        for raw in quarantine_path(plan.work, report.unit).read_bytes().splitlines():
            bad = orjson.loads(raw)
            record = {
                "file": plan.sources[bad["source"]].name,
                "line": bad["line"] + lines_before[bad["source"]],
                "reason": bad["reason"],
                "excerpt": bad["excerpt"],
            }
            yield orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        for segment in report.segments:
            lines_before[segment.source] += segment.lines


def _source_entries(plan: Plan, reports: list[UnitReport]) -> list[SourceEntry]:
    counts = [Counts() for _ in plan.sources]
    dropped: list[Counter[str]] = [Counter() for _ in plan.sources]
    for segment in (segment for report in reports for segment in report.segments):
        counts[segment.source] += sum(segment.splits.values(), Counts())
        dropped[segment.source].update(segment.dropped)
    return [
        SourceEntry(
            path=source.name,
            bytes=source.size,
            sha256=source.sha256,
            version=source.version,
            dropped=dict(dropped[number]),
            **counts[number].model_dump(),
        )
        for number, source in enumerate(plan.sources)
    ]


def _enforce_budget(plan: Plan, dropped: "Counter[str]", good: int) -> None:
    bad = dropped.total()
    where = plan.output / _QUARANTINE
    if bad > plan.config.max_bad_fraction * (bad + good):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items()))
        raise UserError(
            f"{bad:,} of {bad + good:,} records cannot be used ({reasons}), more than "
            f"max_bad_fraction={plan.config.max_bad_fraction}; see {where}, then mend the input "
            "or raise max_bad_fraction"
        )
    if good == 0:
        raise UserError(f"no document was found in the {len(plan.sources)} input files")


def _file_entry(path: Path) -> FileEntry:
    return FileEntry(file=path.name, bytes=path.stat().st_size, sha256=file_sha256(path))


def _print_counts(done: Manifest) -> None:
    for split, counts in sorted(done.splits.items()):
        print(f"  {split}: {counts.documents:,} documents, {counts.tokens:,} tokens")
        if counts.unknown_tokens:
            print(f"  {split}: {counts.unknown_tokens:,} tokens stand for unknown text")
    for reason, count in sorted(done.dropped.items()):
        print(f"  dropped, {reason}: {count:,} (see {_QUARANTINE})")
