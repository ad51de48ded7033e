"""The planned run as a pretraining config. Imports no torch."""

import json
import re
from typing import Any

from launch.estimate.layout import Layout
from launch.plan import ramp
from launch.plan.batch import advised_rate
from launch.plan.quantities import count_text, duration
from launch.plan.search import Ask, Candidate, flops
from launch.plan.subject import different
from pretrain.config import PretrainConfig

_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*")
_WORDS = {"null", "true", "false", "Null", "True", "False", "NULL", "TRUE", "FALSE"}
_WIDTH = 100
_WARMUP, _MOST_WARMUP = 0.01, 2000  # of the steps; steps
_HOUR = 3600.0


def planned(ask: Ask, candidate: Candidate, tokens: int) -> PretrainConfig:
    """The config of a layout: what was written before, with batch, length and layout filled in.

    Learning rate, warm-up and the time between checkpoints are added where nothing was written.
    """
    layout, settings = candidate.layout, json.loads(json.dumps(ask.subject.settings))
    steps = max(1, ramp.batch(ask).sizes.steps(tokens // ask.seq_len))
    settings.pop("steps", None)
    settings["tokens"] = tokens
    settings.setdefault("data", {})["seq_len"] = ask.seq_len
    settings.setdefault("batch", {}).update(
        global_batch_size=layout.global_batch_size, micro_batch_size=layout.micro_batch_size
    )
    settings.setdefault("model", {}).setdefault("max_seq_len", ask.subject.model.max_seq_len)
    settings.setdefault("parallel", {}).update(_parallel(ask, layout))
    settings["precision"], settings["compile"] = layout.precision, layout.compile
    training_flops = flops(ask).causal * tokens
    settings.setdefault("optim", {}).setdefault("lr", advised_rate(training_flops))
    warmup = min(_MOST_WARMUP, round(_WARMUP * steps), steps - 1)
    settings.setdefault("schedule", {}).setdefault("warmup_steps", warmup)
    hourly = max(1, min(steps, round(_HOUR / candidate.time.total_s)))
    settings.setdefault("checkpoint", {}).setdefault("every_steps", hourly)
    return PretrainConfig.model_validate(settings)


def _parallel(ask: Ask, layout: Layout) -> dict[str, Any]:
    """The keys of `parallel` that a layout decides."""
    is_offloaded, is_grouped = layout.offload != "none", layout.shard_ranks is not None
    return {
        "zero_stage": layout.zero_stage,
        "activation_checkpointing": layout.recompute,
        "offload": layout.offload,
        "offload_to": layout.offload_to if is_offloaded else "cpu",
        "nvme_path": ask.nvme_path if layout.offload_to == "nvme" else None,
        "sharding": layout.sharding if is_grouped else "full",
        "shard_ranks": layout.shard_ranks,
    }


_DEFAULTS = PretrainConfig(steps=1).model_dump(mode="json") | {"steps": None}
# Said even where they are the defaults: they are what was planned.
_SAID = {
    "parallel": ("zero_stage", "activation_checkpointing"),
    "data": ("train", "seq_len"),
    "model": ("preset",),
}


def as_yaml(config: PretrainConfig, comment: str) -> str:
    """A config with a comment above it and only what is not at its default, a line a section."""
    whole = config.model_dump(mode="json")
    settings = different(whole, _DEFAULTS)
    for section, names in _SAID.items():
        said = {name: whole[section][name] for name in names}
        settings[section] = {**said, **settings.get(section, {})}
    ordered = {name: settings[name] for name in whole if name in settings}
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for name, value in ordered.items():
        lines += _entry(name, value)
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any) -> list[str]:
    """One key; a section that is too long for a line gets a line for each of its keys."""
    line = f"{name}: {_flow(value)}"
    if not isinstance(value, dict) or len(line) <= _WIDTH:
        return [line]
    return [f"{name}:", *(f"  {key}: {_flow(inner)}" for key, inner in value.items())]


def _flow(value: Any) -> str:
    """A value in YAML's flow style, strings quoted where they could be read as something else."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value not in _WORDS:
        return value
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) else f"{value:.10g}"
    return json.dumps(value, ensure_ascii=False)


def comment_for(ask: Ask, candidate: Candidate, tokens: int, command: str) -> str:
    """What stands above the config: how it was planned, and what was predicted."""
    memory, time = candidate.memory, candidate.time
    return "\n".join(
        [
            f"{ask.subject.name} on {ask.gpus} × {ask.device.name}, {count_text(tokens)} tokens, "
            f"planned by",
            f"  {command}",
            f"Predicted: {duration(time.total_s)} a step ({duration(time.low_s)} to "
            f"{duration(time.high_s)}), {candidate.tokens_per_second:,.0f} tokens/s, "
            f"{duration(tokens / candidate.tokens_per_second)};",
            f"{memory.total / 1e9:.1f} GB a GPU ({memory.low / 1e9:.1f} to "
            f"{memory.high / 1e9:.1f}) of {ask.device.memory_bytes / 1e9:.1f}.",
            *filter(None, [ramp.note(ask, tokens)]),
        ]
    )
