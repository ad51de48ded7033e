"""Prepare a directory of shards: plan → stages → manifest.

Every task leaves either nothing or a finished file, so that the same command goes on wherever an
earlier one was stopped; the manifest comes last, and without it the directory is no data. Inputs
that are added later make units of their own, and until their manifest is there the old one holds.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import orjson

from data_prep import manifest
from data_prep.atomic import disk_errors, locked, remove_leftovers, write_atomic
from data_prep.builtin import write_corpus
from data_prep.commit import commit, tidy
from data_prep.config import DataPrepConfig
from data_prep.decontaminate import Contamination
from data_prep.dedup import is_signed
from data_prep.executors import map_tasks
from data_prep.input_config import BUILTIN
from data_prep.manifest import Manifest
from data_prep.plan import PLAN, WORK, Plan, difference, load_plan, make_plan, save_plan
from data_prep.progress import Progress
from data_prep.sources import input_files
from data_prep.stages import Stage, stage_named, stages
from data_prep.statistics import Statistics
from data_prep.tokenizer import CONFIG_FILE, FILE, DocumentTokenizer
from data_prep.verify import size_problems
from runtime.errors import EXIT_BAD_INPUT, UserError


def prepare(config: DataPrepConfig) -> Manifest:
    """Make `config.output`, add new inputs to it, or return at once where nothing is to be done.

    Raises UserError: unreadable input, too many bad records, another plan or run in the output.
    """
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be made: {error.strerror}") from error
    with locked(output), disk_errors(output):
        _refuse_foreign(output)
        remove_leftovers(output)
        if BUILTIN in config.input.paths:
            write_corpus(output / "builtin")
        old = manifest.load(output) if (output / manifest.NAME).exists() else None
        tests = Contamination.build(config.decontaminate) if config.decontaminate.is_on else None
        plan = _planned(config, old, tests)
        if old is not None and old.plan == plan.identity:
            return _finished(plan, old)
        _begin(plan, tests)
        statistics = Statistics(plan)
        for stage in stages(plan):
            _run(plan, stage, statistics)
        done = commit(plan, old)
        statistics.save(output, done)
        tidy(plan, done)
    statistics.tell(done)
    return done


def run_tasks(output: Path, stage: str, numbers: list[int]) -> None:
    """Run some tasks of a stage of a run that another process coordinates.

    Raises UserError where there is no such run, and for what the tasks raise.
    """
    plan = load_plan(output)
    chosen = stage_named(plan, stage)
    unknown = [number for number in numbers if number not in chosen.weights]
    if unknown:
        known = sorted(chosen.weights)
        raise UserError(
            f"stage {stage} has no task {unknown[0]}, only {known[0]} to {known[-1]}",
            status=EXIT_BAD_INPUT,
        )
    with disk_errors(output):
        for number in numbers:
            if not chosen.is_done(number):
                chosen.task(number)


def _planned(config: DataPrepConfig, old: Manifest | None, tests: Contamination | None) -> Plan:
    """The plan, with inputs that are prepared already in the order that they had."""
    output = Path(config.output)
    known = old.plan if old else None
    files = input_files(config, output / "builtin" / "corpus.jsonl")
    plan = make_plan(config, files, known, tests.identity if tests else None)
    if known:
        _refuse(plan, difference(known, plan.identity))
    for path in (output / WORK).glob(f"*/{PLAN}"):
        if path.parent != plan.work:
            begun = orjson.loads(path.read_bytes())
            _refuse(plan, difference({**begun, "sources": []}, {**plan.identity, "sources": []}))
    if old is None:
        return plan
    units = manifest.load_units(output, old)
    if units is None and old.plan != plan.identity:
        raise UserError(
            f"{output} was prepared by an earlier version; nothing can be added to it. Prepare "
            "the new inputs in a directory of their own and train on both"
        )
    return replace(plan, first_unit=len(units or plan.units))


def _refuse(plan: Plan, changed: str | None) -> None:
    if changed:
        raise UserError(
            f"{plan.output} was made from another plan: {changed}; choose another output "
            "or delete that directory"
        )


def _refuse_foreign(output: Path) -> None:
    ours = (output / manifest.NAME).exists() or (output / ".work").exists()
    names = [p.name for p in output.iterdir() if not p.name.startswith(".")]
    if not ours and set(names) - {"builtin"}:
        raise UserError(
            f"{output} holds other files (such as {sorted(names)[0]}); choose an empty directory"
        )


def _finished(plan: Plan, found: Manifest) -> Manifest:
    problem = next(size_problems(plan.output, found), None)
    if problem:
        raise UserError(f"{problem} (delete {plan.output} first)")
    tidy(plan, found)
    licences = {**found.licences, **plan.config.stated_licences()}
    if licences != found.licences:
        found = found.model_copy(update={"licences": licences})
        manifest.save(found, plan.output)
    print(
        f"already prepared: {plan.output} ({found.documents:,} documents, {found.tokens:,} tokens)"
    )
    return found


def _begin(plan: Plan, tests: Contamination | None) -> None:
    """Make the work directory, with what those who run tasks need; or go on with it."""
    others = [p for p in (plan.output / WORK).glob("*") if p != plan.work]
    if others:
        print("the inputs are not those of the unfinished run here: it is begun anew", flush=True)
    for path in others:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    plan.work.mkdir(parents=True, exist_ok=True)
    remove_leftovers(plan.work)
    remove_leftovers(plan.signatures)
    if plan.first_unit:
        for name in (FILE, CONFIG_FILE):
            write_atomic(plan.work / name, (plan.output / name).read_bytes())
        if plan.config.dedup.is_on:
            _link_signatures(plan)
        print(
            f"adding {len(plan.units) - plan.first_unit} units to the {plan.first_unit} of "
            f"{plan.output}",
            flush=True,
        )
    if tests:
        tests.save(plan.contamination)
        if tests.unreadable:
            print(f"{tests.unreadable:,} test records hold no text", flush=True)
        if tests.too_short:
            print(f"{tests.too_short:,} test texts are too short to be looked for", flush=True)
    write_atomic(plan.work / PLAN, manifest.to_json(plan.identity))
    save_plan(plan)


def _link_signatures(plan: Plan) -> None:
    """Have the signatures of the prepared units beside those to come."""
    plan.signatures.mkdir(exist_ok=True)
    for unit in range(plan.first_unit):
        if not is_signed(plan.kept_signatures, unit, plan.config.dedup):
            raise UserError(
                f"{plan.kept_signatures}: the signatures of unit {unit} are gone, with which new "
                "inputs would be compared; prepare those in a directory of their own"
            )
    for path in plan.kept_signatures.iterdir():
        if path.is_file() and not (plan.signatures / path.name).exists():
            (plan.signatures / path.name).hardlink_to(path)


def _run(plan: Plan, stage: Stage, statistics: Statistics) -> None:
    if stage.name == "shards":
        _tell_encoder(plan)
    left = [number for number in stage.weights if not stage.is_done(number)]
    if stage.report and len(left) < len(stage.weights):
        done = len(stage.weights) - len(left)
        print(f"going on: {done} of {len(stage.weights)} units are done ({stage.told})", flush=True)
    with Progress(stage.told, sum(stage.weights[number] for number in left)) as progress:
        for number in map_tasks(plan, stage, left):
            report = stage.report(number) if stage.report else None
            statistics.add(stage, number, report)
            progress.advance(stage.weights[number], report)


def _tell_encoder(plan: Plan) -> None:
    """Say which library encodes, and why it is the slower one where it is."""
    choice = plan.config.tokenizer
    tokenizer = DocumentTokenizer(plan.work, choice.eod, choice.backend)
    why = f" ({tokenizer.backend_reason})" if tokenizer.backend_reason else ""
    print(f"encoding with {tokenizer.backend}{why}", flush=True)
