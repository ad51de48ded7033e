"""What a pretraining config comes to, as sections of a report. Torch-free."""

from typing import TYPE_CHECKING

from data_prep.shards import Shards
from launch.check.report import Report, Row, Section
from launch.check.target import Target
from launch.estimate.memory import RunMemory
from launch.estimate.pretraining import Training
from launch.plan.quantities import count_text, duration
from model.describe import bytes_text
from model.flops import flops_per_token, non_embedding_parameters, parameters
from pretrain.branch import branch_point
from pretrain.config import PretrainConfig
from pretrain.supply import Supply
from runtime.errors import UserError

if TYPE_CHECKING:
    from launch.check.pretraining import Prediction

_MOMENTS = {
    "start": "while the run starts",
    "logits": "where the backward pass begins",
    "backward": "in the backward pass",
    "reduce": "where gradients are reduced",
    "scatter": "where gradients are shared out",
    "update": "in the optimizer's step",
    "measure": "after the optimizer's step",
    "save": "when a checkpoint is copied",
}
_TOLD = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "logits": "logits",
    "communication": "communication",
    "checkpoint": "copy for saves",
    "fragmentation": "fragmentation",
    "runtime": "libraries",
}


def add_sections(
    report: Report,
    one: Training,
    target: Target,
    supply: Supply | None,
    found: "Prediction",
    *,
    resumes_at: int | None,
) -> None:
    """Add what is known and what is predicted, as text and as numbers."""
    _run(report, one, supply, resumes_at)
    _memory(report, target, found.memory)
    _time(report, one, target, found)
    _storage(report, found)


def validation_sequences(config: PretrainConfig) -> int | None:
    """Rows of the whole validation split; None where it is not here."""
    try:
        tokens = Shards(config.data.valid_path, "valid").tokens
    except UserError:
        return None
    return max(1, tokens // config.data.seq_len)


def _run(report: Report, one: Training, supply: Supply | None, resumes_at: int | None) -> None:
    config, model, layout = one.config, one.model, one.layout
    size = parameters(model, one.head)
    hidden = non_embedding_parameters(model, one.head)
    steps, tokens = config.total_steps, config.positions(config.total_steps)
    ramp = f"{config.positions(1):,} to " if config.batch.ramp else ""
    name = config.model.preset or model.family
    is_known = supply is not None or config.model.model_dump()["vocab_size"] is not None
    assumed = "" if is_known else " assumed: the data decides"
    rows = [
        Row("model", f"{name}, {count_text(size)} parameters ({count_text(hidden)} without "
            f"embeddings), vocabulary {model.vocab_size:,}"
            f"{assumed}"),
        Row("objective", f"{config.objective}, {config.optim.name}"),
        Row("run", f"{steps:,} steps × {ramp}{config.tokens_per_step:,} tokens = "
            f"{count_text(tokens)}, "
            f"{tokens / size:,.1f} per parameter"),
    ]  # fmt: skip
    if supply is not None:
        rows += [
            Row("data", f"{source.path}: {count:,} tokens in {documents:,} documents, "
                f"{epochs:.2f} epochs")
            for source, count, documents, epochs in zip(
                config.data.sources, supply.tokens, supply.documents, supply.epochs, strict=True
            )
        ]  # fmt: skip
    else:
        rows.append(Row("data", "not looked at; epochs are not known"))
    told = f"ZeRO-{layout.zero_stage}, {config.precision}"
    if layout.recompute != "none":
        told += f", recomputing {layout.recompute}"
    if layout.offload != "none":
        told += f", offload of {layout.offload} to {layout.offload_to}"
    told += ", compiled" if config.compile else ""
    rows.append(
        Row("layout", f"{told}; {layout.n_ranks:,} × {layout.accumulation_steps} × "
            f"{layout.micro_batch_size} sequences (ranks × accumulation × micro-batch) of "
            f"{layout.seq_len:,} tokens")
    )  # fmt: skip
    if resumes_at is not None:
        rows.append(Row("goes on", f"from step {resumes_at:,} in {config.run_dir}"))
    branch = branch_point(config)
    if branch is not None:
        rows.append(Row("branches", f"from {branch.path}; {steps - branch.step:,} steps are left"))
    report.sections.append(Section("what is trained", rows))
    report.numbers |= {
        "parameters": size,
        "parameters_without_embeddings": hidden,
        "vocab_size": model.vocab_size,
        "steps": steps,
        "tokens": tokens,
        "epochs": None if supply is None else [round(e, 4) for e in supply.epochs],
        "layout": layout._asdict(),
        "resumes_at": resumes_at,
        "branches_at": None if branch is None else branch.step,
    }


def _memory(report: Report, target: Target, memory: RunMemory) -> None:
    room = target.device.memory_bytes
    together = target.per_node if target.is_cpu else 1
    sizes = {name: getattr(memory, name) for name in _TOLD}
    rows = [
        Row(_TOLD[name] if name != "runtime" or target.is_cpu else "CUDA, NCCL", "", bytes_text(s))
        for name, s in sizes.items()
        if s >= 0.5e6
    ]
    rows = [Row(row.label, row.interval, " ") for row in rows]
    rows.append(
        Row("total", bytes_text(memory.total),
            f"{bytes_text(memory.low)} to {bytes_text(memory.high)}", is_total=True)
    )  # fmt: skip
    ranks = f", {together} ranks" if together > 1 else ""
    where = "this machine" if target.is_cpu else target.device.name
    rows.append(
        Row(f"of {where}", bytes_text(room), f"{100 * together * memory.total / room:.0f} % "
            f"taken{ranks}")
    )  # fmt: skip
    if not target.is_cpu:
        rows.append(Row("host memory", bytes_text(memory.host * min(target.ranks, target.per_node)),
                        "per node"))  # fmt: skip
    title = f"memory of {'each rank' if target.ranks > 1 else 'the run'}, at its peak: "
    report.sections.append(Section(title + _MOMENTS[memory.moment], rows))
    report.numbers["memory"] = {
        **{name: round(size) for name, size in sizes.items()},
        "total": round(memory.total),
        "low": round(memory.low),
        "high": round(memory.high),
        "device": round(room),
        "host": round(memory.host),
        "moment": memory.moment,
    }


def _time(report: Report, one: Training, target: Target, found: "Prediction") -> None:
    step, cost, layout = found.step, found.cost, one.layout
    rates = [layout.tokens_per_step / s for s in (step.total_s, step.high_s, step.low_s)]
    per_token = flops_per_token(one.model, layout.seq_len, one.head, one.predicted_fraction)
    peak = target.device.peak[layout.precision] * (target.nodes if target.is_cpu else target.ranks)
    full, causal = (rates[0] * each / peak for each in per_token)
    rows = [
        Row("step", duration(step.total_s), _between(step.low_s, step.high_s)),
        Row("tokens/s", count_text(rates[0]), f"{count_text(rates[1])} to {count_text(rates[2])}"),
        Row(
            "MFU", f"{100 * full:.1f} %", f"attention counted in full; causal {100 * causal:.1f} %"
        ),
    ]
    if layout.n_ranks > 1:
        share = f"{100 * step.exposed_s / step.total_s:.0f} % of the step"
        rows.append(Row("communication", duration(step.exposed_s), f"not hidden, {share}"))
    if found.evaluations_s:
        rows.append(Row("evaluations", duration(found.evaluations_s), "in all"))
    rows.append(Row("whole run", duration(cost.seconds), _between(cost.low_s, cost.high_s),
                    is_total=True))  # fmt: skip
    what = "machine" if target.is_cpu else "GPU"
    rows.append(
        Row("energy", f"{_digits(cost.kilowatt_hours)} kWh",
            f"{_digits(cost.gpu_hours)} {what} hours, without cooling")
    )  # fmt: skip
    if cost.price is not None:
        low, high = (cost.price * s / cost.seconds for s in (cost.low_s, cost.high_s))
        rows.append(Row("price", f"{cost.price:,.2f}", f"{low:,.2f} to {high:,.2f}"))
    note = "reckoned for idle cores; --probe measures the step" if found.is_reckoned else ""
    report.sections.append(Section("time", rows, note))
    report.numbers["time"] = {
        **{name: value for name, value in step._asdict().items() if name != "parts"},
        "tokens_per_second": rates[0],
        "mfu": full,
        "mfu_causal": causal,
        "evaluations_s": found.evaluations_s,
    }
    report.numbers["cost"] = {**cost._asdict(), "days": cost.days}


def _storage(report: Report, found: "Prediction") -> None:
    saves = found.saves
    rows = [
        Row("one", bytes_text(saves.size), f"{saves.number:,} written, {saves.kept:,} kept"),
        Row("disk", bytes_text(saves.room), "at most"),
        Row("copying", duration(saves.copy_s), "training waits"),
        Row("writing", duration(saves.write_s), _between(saves.write_low_s, saves.write_high_s)),
        Row("cost", f"{100 * saves.share:.1f} %", "of the run's time"),
    ]
    report.sections.append(Section("checkpoints", rows))
    report.numbers["checkpoints"] = saves._asdict()


def _digits(number: float) -> str:
    """Three digits, and all of a large whole number."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _between(low: float, high: float) -> str:
    return f"{duration(low)} to {duration(high)}"
