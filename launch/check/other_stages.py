"""The checks of fine-tuning and data preparation configs. Torch-free."""

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_prep.config import DataPrepConfig
from data_prep.config import check as check_data
from data_prep.input_config import BUILTIN, DATASETS, expand
from finetune.config import FinetuneConfig, cuts_examples, head_of, model_directory, read_sets
from finetune.config import check as check_run
from finetune.multitask.config import (
    MultitaskConfig,
    check_all,
    names_with_shares,
    total_steps,
)
from launch.check.report import Report, Row, Section
from launch.check.target import Target, target_of
from launch.plan.quantities import count_text
from model.config import ModelConfig
from model.describe import bytes_text
from model.flops import parameters
from model.hf.config import read_config
from model.memory import training_memory
from runtime.config import Problem, load

_MEMBER = re.compile(r"^tasks\.\d+\.")
_ELSEWHERE = ("data", "model", "task.max_length", "input.", "decontaminate.", "tokenizer.path")


def check_finetuning(path: Path, overrides: Sequence[str], options: argparse.Namespace) -> Report:
    """Check a fine-tuning config. Raises ConfigError with every mistake."""
    device = "auto" if options.gpu else load(FinetuneConfig, path, overrides).run.device
    target = target_of(options, device)
    config = load(
        FinetuneConfig,
        path,
        overrides,
        lambda c: _seen(check_run(c, target.ranks), options),
    )
    report = Report(str(path), "fine-tuning", str(target))
    rows = [Row("model", config.model), Row("task", f"{config.task.kind}, {config.precision}")]
    if options.no_data:
        rows.append(Row("data", "not looked at"))
        report.sections.append(Section("what is trained", rows))
        return report
    sets, _ = read_sets(config)
    shape, head = _shape(config, sets.labels)
    size, steps = parameters(shape, head), config.total_steps(len(sets.train))
    # The windows of long texts are counted once they are encoded.
    more = " and more" if cuts_examples(config) else ""
    rows[0] = Row("model", f"{config.model}: {shape.family}, {count_text(size)} parameters")
    rows += [
        Row("data", f"{len(sets.train):,} texts to learn from, {len(sets.dev):,} to "
            f"choose by, {len(sets.labels)} classes"),
        Row("run", f"{steps:,} steps{more} of {config.batch.global_batch_size} texts"),
    ]  # fmt: skip
    report.numbers |= {"parameters": size, "steps": steps, "examples": len(sets.train)}
    _judge_memory(report, rows, _memory(config, shape, head, target), target)
    report.sections.append(Section("what is trained", rows))
    return report


def check_multitask(path: Path, overrides: Sequence[str], options: argparse.Namespace) -> Report:
    """Check a config of several tasks over one trunk. Raises ConfigError with every mistake."""
    device = "auto" if options.gpu else load(MultitaskConfig, path, overrides).run.device
    target = target_of(options, device)
    config = load(
        MultitaskConfig,
        path,
        overrides,
        lambda c: _seen(check_all(c, target.ranks), options),
    )
    report = Report(str(path), "fine-tuning of several tasks", str(target))
    rows = [Row("model", config.model), Row("tasks", ", ".join(config.members))]
    report.sections.append(Section("what is trained", rows))
    if options.no_data:
        rows.append(Row("data", "not looked at"))
        return report
    members = config.members
    sets = {name: read_sets(member)[0] for name, member in members.items()}
    sizes = [len(found.train) for found in sets.values()]
    shares = dict(names_with_shares(config, sizes))
    rows += [
        Row(name, f"{members[name].task.kind}, {len(found.train):,} texts, "
            f"{len(found.labels)} classes, {shares[name]:.0%} of the steps")
        for name, found in sets.items()
    ]  # fmt: skip
    steps = total_steps(config, sizes)
    is_cut = any(map(cuts_examples, members.values()))
    more = " or more, and other shares: long texts are cut into several" if is_cut else ""
    batch = config.batch.global_batch_size
    rows.append(Row("run", f"{steps:,} steps{more}; each of {batch} texts of one task"))
    report.numbers |= {"steps": steps, "examples": dict(zip(members, sizes, strict=True))}
    most = max(
        _memory(member, *_shape(member, sets[name].labels), target)
        for name, member in members.items()
    )
    _judge_memory(report, rows, most, target)
    return report


def _shape(config: FinetuneConfig, labels: Sequence[str]) -> tuple[ModelConfig, str]:
    """The model's shape with the task's classes, and its head."""
    shape = read_config(model_directory(Path(config.model)))
    head, settings = head_of(config, labels)
    classes = settings.get("num_labels", shape.num_labels)
    return shape.model_copy(update={"num_labels": classes}), head


def _memory(config: FinetuneConfig, shape: ModelConfig, head: str, target: Target) -> float:
    """Bytes of a step on each rank."""
    # Weights are fp32 always, and so are gradients and moments.
    found = training_memory(
        shape,
        config.task.max_length,
        config.micro_batch_size(target.ranks),
        dtype="fp32",
        head=head,
        zero_stage=0,
        moments=1 if config.optim.name == "lion" else 2,
    )
    return found.total


def _judge_memory(report: Report, rows: list[Row], memory: float, target: Target) -> None:
    rows.append(Row("memory", f"{bytes_text(memory)} on each rank, and what the libraries take"))
    report.numbers["memory"] = {"without_libraries": round(memory)}
    if memory > target.device.memory_bytes:
        report.error(
            "batch.micro_batch_size",
            f"does not fit: {memory / 1e9:,.1f} GB and more, of "
            f"{target.device.memory_bytes / 1e9:,.1f} GB; lower it, or task.max_length",
        )


def check_data_prep(path: Path, overrides: Sequence[str], options: argparse.Namespace) -> Report:
    """Check a data preparation config. Raises ConfigError with every mistake."""
    config = load(DataPrepConfig, path, overrides, lambda c: _seen(check_data(c), options))
    report = Report(str(path), "data preparation", f"executor {config.executor}")
    rows = [Row("output", config.output), Row("tokenizer", _tokenizer(config))]
    if not options.no_data:
        size, count = _inputs(config)
        rows.insert(0, Row("input", f"{count:,} files, {bytes_text(size)}"))
        report.numbers |= {"input_files": count, "input_bytes": size}
        _check_room(report, config, size)
    report.sections.append(Section("what is prepared", rows))
    return report


def _seen(problems: list[Problem], options: argparse.Namespace) -> list[Problem]:
    """Those that can be seen where the data is not."""
    if not options.no_data:
        return problems
    return [p for p in problems if not _MEMBER.sub("", p.key).startswith(_ELSEWHERE)]


def _tokenizer(config: DataPrepConfig) -> str:
    if config.tokenizer.path is not None:
        return str(config.tokenizer.path)
    trained = config.tokenizer.train
    return "none" if trained is None else f"to be trained: {trained.kind}"


def _inputs(config: DataPrepConfig) -> tuple[int, int]:
    """Bytes and number of the local input files."""
    size = count = 0
    for text in config.input.paths:
        if text == BUILTIN or text.startswith(DATASETS):
            continue
        for place in expand(text, config.input.format):
            count += 1
            size += place.stat().st_size if isinstance(place, Path) else 0
    return size, count


def _check_room(report: Report, config: DataPrepConfig, size: int) -> None:
    """Token ids take less room than the text that they are made from, unless it is packed."""
    place = Path(config.output)
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        report.advise(
            "output",
            f"{place} has {free / 1e9:,.1f} GB free for {size / 1e9:,.1f} GB of input; shards of "
            "plain text take about half of it, of packed text more than all",
        )
