"""The checks and predictions of a pretraining config. Torch-free."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.shards import Shards
from data_prep.verify import verify_directory
from launch.check import advice, sections
from launch.check.report import Report
from launch.check.target import Target, target_of
from launch.estimate.cost import Cost, cost_of
from launch.estimate.memory import RunMemory
from launch.estimate.network import HOST_MEMORY
from launch.estimate.pretraining import Training, memory_of, training
from launch.estimate.step_time import StepTime, step_time
from launch.estimate.storage import Saves, checkpoint_size, saves_of
from model.config import ModelConfig
from pretrain.architecture import check_resume, newest_step
from pretrain.branch import BRANCH_FROM, branch_point, rate_notes, stored_config
from pretrain.config import PretrainConfig, check
from pretrain.supply import Supply, supply_of
from runtime.checkpoint.format import ROOM, verify
from runtime.config import Problem, load, read_tree
from runtime.errors import UserError

# A processor's step is reckoned from what its cores give at best; whatever else runs slows it down.
CPU_LEAST, CPU_MOST = 0.7, 2.0


class Prediction(NamedTuple):
    """Everything that is foreseen of a run."""

    memory: RunMemory
    step: StepTime
    evaluations_s: float  # in all
    saves: Saves
    cost: Cost
    is_reckoned: bool  # the step on a CPU, without a probe


def check_pretraining(path: Path, overrides: Sequence[str], options: argparse.Namespace) -> Report:
    """Check a config. Raises ConfigError with every mistake that the run itself would refuse."""
    target = target_of(options, _device(path, overrides))

    def problems(config: PretrainConfig) -> list[Problem]:
        there = on(config, target)
        return check(there, target.ranks, has_data=not options.no_data, is_here=target.is_here)

    config = load(PretrainConfig, path, overrides, problems)
    report = Report(str(path), "pretraining", str(target))
    sources = [] if options.no_data else [Shards(s.path, "train") for s in config.data.sources]
    model = _model(config, sources)
    supply = _supply(report, config, sources)
    if sources:
        order = None if supply is None else supply.order
        for problem in check_resume(config, model, order):
            report.error(problem.key, problem.message)
        _look_at_branch(report, config, is_verified=options.verify)
        if options.verify:
            _verify(report, config)
    one = training(config, model, target.ranks)
    is_fp8 = config.precision == "fp8"
    if one.layout.precision not in target.device.peak or (is_fp8 and not target.device.has_fp8):
        known = " or ".join(sorted(target.device.peak))
        report.error("precision", f"{target.device.name} has no {config.precision}; write {known}")
        return report
    found = predict(one, target, options)
    sections.add_sections(report, one, target, supply, found, resumes_at=newest_step(config))
    _check_fit(report, one, target, found)
    _check_host(report, target, found)
    _check_disk(report, config, target, found)
    case = advice.Case(
        one,
        target,
        supply,
        found.memory,
        found.step,
        found.evaluations_s,
        found.saves,
        found.cost.seconds,
    )
    advice.add_advice(report, case)
    return report


def _device(path: Path, overrides: Sequence[str]) -> str:
    """run.device as written; a wrong one is told below, together with all other mistakes."""
    run = read_tree(path, overrides).get("run")
    device = run.get("device") if isinstance(run, dict) else None
    return device if device in ("cpu", "cuda") else "auto"


def on(config: PretrainConfig, target: Target) -> PretrainConfig:
    """The config as it is where the run will be."""
    run = config.run.model_copy(update={"device": target.device_type})
    return config.model_copy(update={"run": run})


def _model(config: PretrainConfig, sources: list[Shards]) -> ModelConfig:
    return config.model_config_for(sources[0]) if sources else config.model_config_alone()


def _supply(report: Report, config: PretrainConfig, sources: list[Shards]) -> Supply | None:
    if not sources:
        return None
    try:
        return supply_of(config, sources)
    except UserError as error:
        key, _, message = str(error).partition(": ")
        report.error(*((key, message) if message else ("data.train", key)))
        return None


def _verify(report: Report, config: PretrainConfig) -> None:
    """Hash every byte, as the run will before its first step."""
    for path in sorted({config.data.valid_path, *(s.path for s in config.data.sources)}):
        for problem in verify_directory(Path(path)):
            report.error("data.train", problem)


def _look_at_branch(report: Report, config: PretrainConfig, *, is_verified: bool) -> None:
    """What would go wrong, or otherwise than one thinks, at the start of a branch."""
    branch = branch_point(config)
    if branch is None:
        return
    for note in rate_notes(config, stored_config(branch.path), branch.step):
        report.advise("schedule", note)
    for problem in verify(branch.path) if is_verified else ():
        report.error(BRANCH_FROM, f"{problem}; restore it, or name another checkpoint")


def predict(one: Training, target: Target, options: argparse.Namespace) -> Prediction:
    """Memory, time, storage and cost."""
    step = step_time(
        one.model,
        one.layout,
        target.device,
        target.network,
        target.per_node,
        head=one.head,
        predicted_fraction=one.predicted_fraction,
    )
    if options.probe:
        from launch.check.probe import probed

        step = probed(one, target, step, options)
    elif target.is_cpu:
        step = step._replace(low_s=CPU_LEAST * step.total_s, high_s=CPU_MOST * step.total_s)
    config, branch = one.config, branch_point(one.config)
    steps = max(0, config.total_steps - (branch.step if branch else 0))
    evaluations = evaluations_s(one, step, steps, has_data=not options.no_data)
    size = checkpoint_size(one.model, one.head, one.layout.precision, config.optim.name)
    saves = saves_of(
        config.checkpoint,
        size,
        steps,
        step.total_s,
        layout=one.layout,
        device=target.device,
        bandwidth=options.disk_bandwidth and options.disk_bandwidth * 1e9,
    )
    rest = evaluations + saves.stall_s
    # Smaller batches at first take as much less time.
    positions = config.positions(config.total_steps) - config.positions(config.total_steps - steps)
    full = positions / config.tokens_per_step
    seconds = tuple(full * s + rest for s in (step.total_s, step.low_s, step.high_s))
    cost = cost_of(
        (seconds[0], seconds[1], seconds[2]),
        target.device,
        ranks=target.ranks,
        nodes=target.nodes,
        watts=options.watts,
        price_per_hour=options.price_per_gpu_hour,
    )
    is_reckoned = target.is_cpu and not options.probe
    memory = memory_of(one, target.device)
    return Prediction(memory, step, evaluations, saves, cost, is_reckoned)


def evaluations_s(one: Training, step: StepTime, steps: int, *, has_data: bool) -> float:
    """Seconds of all evaluations in so many steps: forward passes, a third of their computing."""
    evaluate, config = one.config.evaluate, one.config
    if not evaluate.every_steps:
        return 0.0
    times = steps // evaluate.every_steps + (steps % evaluate.every_steps > 0)
    sequences = evaluate.max_sequences
    if not sequences and has_data:
        sequences = sections.validation_sequences(config) or 0
    rounds = sequences / one.layout.global_batch_size
    return times * rounds * step.compute_s / 3


def _check_fit(report: Report, one: Training, target: Target, found: Prediction) -> None:
    """Memory of the device."""
    room = target.device.memory_bytes
    together = target.per_node if target.is_cpu else 1
    where = "this machine" if target.is_cpu else f"one {target.device.name}"
    need, low, high = (
        together * size for size in (found.memory.total, found.memory.low, found.memory.high)
    )
    if need > room:
        mends = advice.mends(one, target)
        ranks = f" for {together} ranks" if together > 1 else ""
        report.error(
            "",
            f"does not fit: {need / 1e9:,.1f} GB{ranks} ({low / 1e9:,.1f} to {high / 1e9:,.1f}), "
            f"and {where} has {room / 1e9:,.1f} GB; {mends}",
        )
    elif high > room:
        report.advise(
            "",
            f"may not fit: up to {high / 1e9:,.1f} GB of {room / 1e9:,.1f} GB; "
            f"{advice.mends(one, target)}",
        )


def _check_host(report: Report, target: Target, found: Prediction) -> None:
    """Memory of a node, which all of its ranks share with what they offload."""
    if target.is_cpu:
        return  # it is the device
    need, room = found.memory.host * min(target.ranks, target.per_node), target.host_memory
    told = f"a node needs {need / 1e9:,.0f} GB of its own memory for its ranks"
    mend = "offload less, or take more nodes"
    if room is not None and need > room:
        report.error("parallel.offload", f"{told} and has {room / 1e9:,.0f} GB; {mend}")
    elif room is None and need > HOST_MEMORY:
        report.advise("parallel.offload", f"{told}; say what it has with --host-memory, or {mend}")


def _check_disk(report: Report, config: PretrainConfig, target: Target, found: Prediction) -> None:
    """Room for the checkpoints where the run directory will be."""
    place = config.run_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    free, saves = shutil.disk_usage(place).free, found.saves
    report.numbers["disk"] = {"free_bytes": free, "needed_bytes": round(saves.room)}
    told = f"{place} has {free / 1e9:,.1f} GB free"
    mend = "free some, choose another run.dir, or lower checkpoint.keep_last"
    if free < ROOM * saves.size:
        message = f"{told}, and one checkpoint needs {ROOM * saves.size / 1e9:,.1f} GB; {mend}"
        if target.is_here:
            report.error("run.dir", message)
        else:
            report.advise("run.dir", f"{message} (where the run will be, it may be another disk)")
    elif free < saves.room:
        report.advise(
            "checkpoint.keep_last",
            f"{told}, and {saves.kept} checkpoints with the one being written need "
            f"{saves.room / 1e9:,.1f} GB; {mend}",
        )
