"""What could be better in a pretraining config: advice, never an error. Torch-free.

Each rule is a function that yields findings; where one says that something fits or is faster, it
has been reckoned, not guessed.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from launch.check.report import Finding, Report
from launch.check.target import Target
from launch.estimate.layout import Layout
from launch.estimate.memory import RunMemory
from launch.estimate.pretraining import Training, memory_of
from launch.estimate.step_time import StepTime, step_time
from launch.estimate.storage import Saves
from launch.plan.quantities import duration
from pretrain.supply import Supply
from runtime import hardware

MOST_EPOCHS = 4  # Muennighoff et al. 2023: repeated so often, text is as good as new
MOST_WARMUP, LEAST_WARMUP = 0.1, 0.001
MOST_OVERHEAD = 0.05  # of a run's time, for saves or for evaluations
MOST_LOST_S = 2 * 3600  # of work between two saves
WORTH = 1.05  # times as fast, to be worth a line
MOST_PADDING = 0.3
MOST_YEARS = 1
FULL = 0.9  # of a device, that a larger micro-batch may take


class Case(NamedTuple):
    """What the rules look at."""

    one: Training
    target: Target
    supply: Supply | None
    memory: RunMemory
    step: StepTime
    evaluations_s: float
    saves: Saves
    seconds: float  # of the whole run


def add_advice(report: Report, case: Case) -> None:
    """Add what the rules find; what concerns speed only where the run fits."""
    for rule in (*_OF_DATA, _length, _warmup, _saves, _evaluations):
        report.findings.extend(rule(case))
    if case.memory.total <= _room(case.target):
        for rule in (_compile, _precision, _micro_batch, _spared):
            report.findings.extend(rule(case))


def _advice(key: str, message: str) -> Finding:
    return Finding("advice", key, message)


def _vocabulary(case: Case) -> Iterator[Finding]:
    rows = case.one.model.padded_vocab_size
    if rows % 64 and not case.target.is_cpu:
        yield _advice(
            "model.vocab_multiple",
            f"the output matrix has {rows:,} rows, no multiple of 64, which tensor cores want; "
            "write model.vocab_multiple: 64 (or 128)",
        )


def _positions(case: Case) -> Iterator[Finding]:
    model, seq_len = case.one.model, case.one.layout.seq_len
    if model.positions == "learned" and seq_len < model.max_seq_len:
        yield _advice(
            "model.max_seq_len",
            f"positions from {seq_len:,} to {model.max_seq_len:,} are learned ones that no text "
            f"reaches: they stay random; write model.max_seq_len: {seq_len}, or train longer texts",
        )


def _epochs(case: Case) -> Iterator[Finding]:
    if case.supply is None:
        return
    sources = case.one.config.data.sources
    for source, epochs in zip(sources, case.supply.epochs, strict=True):
        if epochs > MOST_EPOCHS:
            yield _advice(
                "data.train",
                f"{source.path} is passed through {epochs:.1f} times; text repeated more than "
                f"{MOST_EPOCHS} times teaches less and less (Muennighoff et al. 2023): prepare "
                "more, or shorten the run",
            )


def _padding(case: Case) -> Iterator[Finding]:
    if case.supply is not None and case.supply.utilisation < 1 - MOST_PADDING:
        yield _advice(
            "data.packing",
            f"only {100 * case.supply.utilisation:.0f} % of the positions hold tokens; write "
            "data.packing: best_fit where the objective takes it, or a shorter data.seq_len",
        )


def _warmup(case: Case) -> Iterator[Finding]:
    schedule, steps = case.one.config.schedule, case.one.config.total_steps
    share = schedule.warmup_steps / steps
    if share > MOST_WARMUP:
        yield _advice(
            "schedule.warmup_steps",
            f"{schedule.warmup_steps:,} of {steps:,} steps, {100 * share:.0f} % of the run, are "
            f"warm-up; 1 to 5 % are usual: {max(1, steps // 100):,} to {max(1, steps // 20):,}",
        )
    elif share < LEAST_WARMUP and schedule.warmup_steps == 0:
        yield _advice(
            "schedule.warmup_steps",
            "0: the first steps take the full learning rate, with moments that know nothing yet; "
            f"{max(1, steps // 100):,} steps, 1 % of the run, are usual",
        )


def _saves(case: Case) -> Iterator[Finding]:
    settings, saves = case.one.config.checkpoint, case.saves
    if saves.share > MOST_OVERHEAD:
        wanted = saves.copy_s + (saves.write_s if not settings.background else 0)
        every = max(1, int(max(wanted / MOST_OVERHEAD, saves.write_s) / case.step.total_s))
        yield _advice(
            "checkpoint.every_steps",
            f"saving every {settings.every_steps:,} steps takes {100 * saves.share:.0f} % of the "
            f"time; every {every:,} steps would take {100 * MOST_OVERHEAD:.0f} %",
        )
    every_s = (settings.every_steps or case.one.config.total_steps) * case.step.total_s
    if every_s > MOST_LOST_S > 4 * case.step.total_s:
        every = int(MOST_LOST_S / 4 / case.step.total_s)
        yield _advice(
            "checkpoint.every_steps",
            f"a failure loses up to {duration(every_s)} of work; a save every {every:,} steps "
            f"would lose {duration(every * case.step.total_s)}",
        )


def _length(case: Case) -> Iterator[Finding]:
    if case.seconds > MOST_YEARS * 365 * 86_400:
        yield _advice(
            "steps" if case.one.config.steps else "tokens",
            f"the run would take {duration(case.seconds)}; more ranks, a smaller model or batch, "
            "or a shorter run?",
        )


def _evaluations(case: Case) -> Iterator[Finding]:
    share = case.evaluations_s / case.seconds if case.seconds else 0.0
    if share > MOST_OVERHEAD:
        yield _advice(
            "evaluate.max_sequences",
            f"evaluations take {100 * share:.0f} % of the time; lower it, or raise "
            "evaluate.every_steps",
        )


def _compile(case: Case) -> Iterator[Finding]:
    is_wanted, target = case.one.config.compile, case.target
    if is_wanted and target.is_cpu and target.is_here and not hardware.has_cpp_compiler():
        yield _advice(
            "compile",
            "true, and no C++ compiler is on PATH: the run goes on without; install g++, or write "
            "false",
        )
    if is_wanted or target.is_cpu:
        return
    faster = case.step.total_s / _step(case, case.one.layout._replace(compile=True)).total_s
    if faster > WORTH:
        yield _advice(
            "compile", f"false; with true a step is expected to be {faster:.2f} times as fast"
        )


def _precision(case: Case) -> Iterator[Finding]:
    precision, has_bf16 = case.one.config.precision, "bf16" in case.target.device.peak
    if precision == "fp8":
        yield _advice("precision", _of_fp8(case))
        return
    if case.target.is_cpu or precision == "bf16" or not has_bf16:
        return
    why = (
        "tensor cores compute bf16 many times as fast"
        if precision == "fp32"
        else "bf16 needs no loss scaling, and this device has it"
    )
    yield _advice("precision", f"{precision}; {why}: write bf16")


def _of_fp8(case: Case) -> str:
    told = "fp8; memory and time are those of bf16: what FP8 gains is not estimated"
    if case.target.is_cpu:
        return f"{told}, and on a CPU it is emulated, which is slower"
    if not case.one.config.compile:
        return f"{told}, and without compile: true it is as a rule slower"
    return told


def _micro_batch(case: Case) -> Iterator[Finding]:
    """A larger micro-batch that fits well, where it is faster."""
    layout = case.one.layout
    per_rank = layout.micro_batch_size * layout.accumulation_steps
    best: tuple[float, int, RunMemory] | None = None
    for size in _divisors(per_rank):
        if size <= layout.micro_batch_size:
            continue
        wider = layout._replace(micro_batch_size=size, accumulation_steps=per_rank // size)
        memory = memory_of(case.one._replace(layout=wider), case.target.device)
        if memory.high > FULL * _room(case.target):
            break
        faster = case.step.total_s / _step(case, wider).total_s
        if faster > WORTH and (best is None or faster > best[0]):
            best = (faster, size, memory)
    if best is not None:
        faster, size, memory = best
        yield _advice(
            "batch.micro_batch_size",
            f"{layout.micro_batch_size}; {size} fits as well ({memory.total / 1e9:.1f} GB) and is "
            f"expected to be {faster:.2f} times as fast",
        )


def _spared(case: Case) -> Iterator[Finding]:
    """What saves memory that nobody lacks, and costs time."""
    layout = case.one.layout
    changes: list[tuple[str, str, dict[str, Any]]] = []
    if layout.recompute != "none":
        changes.append(("parallel.activation_checkpointing", "none", {"recompute": "none"}))
    if layout.offload != "none":
        changes.append(("parallel.offload", "none", {"offload": "none", "offload_to": "cpu"}))
    if layout.zero_stage == 3:
        lighter = {"zero_stage": 1, "shard_ranks": None, "offload": "none", "offload_to": "cpu"}
        changes.append(("parallel.zero_stage", "1", lighter))
    for key, value, change in changes:
        lighter_layout = layout._replace(**change)
        memory = memory_of(case.one._replace(layout=lighter_layout), case.target.device)
        faster = case.step.total_s / _step(case, lighter_layout).total_s
        if memory.high < FULL * _room(case.target) and faster > WORTH:
            yield _advice(
                key,
                f"{value} fits as well ({memory.total / 1e9:.1f} GB) and is expected to be "
                f"{faster:.2f} times as fast",
            )


_OF_DATA = (_vocabulary, _positions, _epochs, _padding)


def mends(one: Training, target: Target) -> str:
    """Changes of one or two keys with which the run fits, the least costly first."""
    layout = one.layout
    per_rank = layout.micro_batch_size * layout.accumulation_steps
    smaller = [size for size in _divisors(per_rank) if size < layout.micro_batch_size]
    batches = [
        (
            f"batch.micro_batch_size: {size}",
            {"micro_batch_size": size, "accumulation_steps": per_rank // size},
        )
        for size in reversed(smaller)
    ]
    others: list[tuple[str, dict[str, Any]]] = []
    if layout.zero_stage < 3 and layout.n_ranks > 1:
        others.append(("parallel.zero_stage: 3", {"zero_stage": 3}))
    if layout.recompute != "block":
        others.append(("parallel.activation_checkpointing: block", {"recompute": "block"}))
    if layout.offload == "none" and layout.zero_stage > 0 and not target.is_cpu:
        others.append(("parallel.offload: optimizer", {"offload": "optimizer"}))
    found = []
    for text, change in [*batches[:], *others]:
        if _fits(one, target, layout._replace(**change)):
            found.append(text)
            if text.startswith("batch"):
                batches = []
    if not found:
        least = [batches[-1]] if batches else []
        for count in range(len(others)):
            together = [*least, *others[: count + 1]]
            change = {k: v for _, keys in together for k, v in keys.items()}
            if _fits(one, target, layout._replace(**change)):
                return f"together these fit: {', '.join(text for text, _ in together)}"
        more = "" if target.is_cpu else ", more ranks under parallel.zero_stage: 3"
        return f"a smaller model{more}, or a device with more memory is needed"
    first_batch = [text for text in found if text.startswith("batch")][:1]
    rest = [text for text in found if not text.startswith("batch")]
    return f"any of these fits: {'; '.join([*first_batch, *rest])}"


def _fits(one: Training, target: Target, layout: Layout) -> bool:
    return memory_of(one._replace(layout=layout), target.device).high <= _room(target)


def _room(target: Target) -> float:
    """Bytes that one rank may take."""
    together = target.per_node if target.is_cpu else 1
    return target.device.memory_bytes / together


def _step(case: Case, layout: Layout) -> StepTime:
    one, target = case.one, case.target
    return step_time(
        one.model,
        layout,
        target.device,
        target.network,
        target.per_node,
        head=one.head,
        predicted_fraction=one.predicted_fraction,
    )


def _divisors(number: int) -> list[int]:
    low = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*low, *(number // size for size in low)})
