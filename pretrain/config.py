"""The pretraining config, and every check that needs no torch and no process group."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pydantic

from data_prep.batch_sizes import rises
from data_prep.shards import Shards
from data_prep.tokenizer import SpecialTokens
from model.config import ModelConfig
from model.families import AttentionBackend
from model.kernels import Kernels
from model.presets import preset
from pretrain.branch import check_branch
from pretrain.checks import check_data, check_without_data
from pretrain.objectives.traits import TRAITS
from pretrain.sections import (
    Batch,
    Data,
    DeepSpeed,
    Evaluate,
    Infilling,
    Loss,
    Masking,
    Model,
    Objective,
    Pairs,
    Run,
)
from runtime import hardware, sections
from runtime.checks import check_batch, check_log, check_run_dir, check_schedule
from runtime.config import Config, Problem, key, section
from runtime.deepspeed_config import misplaced_keys, owned_keys
from runtime.legality import Combination, check_combination, check_tools

_MASKED_PRESET = "bert-tiny"
_USUAL_VOCABULARY = 50_304  # GPT-2's, rounded up


class PretrainConfig(Config):
    """A pretraining run."""

    run: Run = section(Run, "The run")
    model: Model = section(Model, "The model")
    data: Data = section(Data, "The data")
    objective: Objective = key("causal_lm", "What the model learns to predict")
    masking: Masking = section(Masking, "What masked objectives hide")
    pairs: Pairs = section(Pairs, "What masked_lm_nsp and masked_lm_sop pair")
    loss: Loss = section(Loss, "What is added to the loss")
    infilling: Infilling = section(Infilling, "What fill_in_the_middle turns around")
    batch: Batch = section(Batch, "The batch")
    steps: int | None = key(None, "Length of the run; give steps or tokens", unit="steps", ge=1)
    tokens: int | None = key(
        None,
        "Length of the run in positions, padding counted; never exceeded, so the last partial step "
        "is left out (data that is left out under a ramp makes later steps larger)",
        unit="tokens",
        ge=1,
    )
    optim: sections.Optim = section(sections.Optim, "The optimizer")
    schedule: sections.Schedule = section(sections.Schedule, "The learning rate")
    parallel: sections.Parallel = section(sections.Parallel, "The ranks")
    precision: sections.Precision = key(
        "bf16",
        "Of forward and backward; master weights are fp32 always. fp8: as bf16, and in training "
        "the linear maps inside the blocks multiply in 8 bits, by torchao (GPUs from Ada on)",
    )
    compile: bool = key(
        False,
        "torch.compile each block and the loss, with a cache in the run directory; where that does "
        "not work (on a CPU it needs a C++ compiler) the run says so and goes on without",
    )
    attention: AttentionBackend = key(
        "auto",
        "What computes attention. auto: by a table, told when the run starts; the others have no "
        "way out where they cannot take a shape. flex is compiled, whatever compile says",
    )
    kernels: Kernels = key(
        "torch",
        "Of norms, rotary positions and loss: PyTorch's operations, or our own, in Triton (a GPU)",
    )
    checkpoint: sections.Checkpoint = section(sections.Checkpoint, "Saving")
    evaluate: Evaluate = section(Evaluate, "Validation")
    health: sections.Health = section(sections.Health, "When to give up")
    log: sections.Log = section(sections.Log, "Logs")
    deepspeed: DeepSpeed = section(DeepSpeed, "DeepSpeed")

    @property
    def run_dir(self) -> Path:
        """The run directory, with {name} filled in."""
        return Path(self.run.dir.replace("{name}", self.run.name))

    @property
    def tokens_per_step(self) -> int:
        """Positions in one global batch, after any ramp."""
        return self.batch.global_batch_size * self.data.seq_len

    def positions(self, steps: int) -> int:
        """Positions in the global batches of the first so many steps."""
        return self.batch.sizes.first(steps) * self.data.seq_len

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or self.batch.sizes.steps((self.tokens or 0) // self.data.seq_len)

    def micro_batch_size(self, world_size: int) -> int:
        """Sequences per forward pass on one rank."""
        return self.batch.micro_batch_size or self.batch.global_batch_size // world_size

    def accumulation_steps(self, world_size: int) -> int:
        """Forward passes per optimizer step on one rank."""
        return self.batch.global_batch_size // (self.micro_batch_size(world_size) * world_size)

    def model_config_alone(self) -> ModelConfig:
        """The model shape as far as the config says it, with a usual vocabulary where it does not.

        Raises ValueError as `model_config_for`.
        """
        given = self.model.model_dump()
        has_vocabulary = given["preset"] is not None or given["vocab_size"] is not None
        return self._shape({} if has_vocabulary else {"vocab_size": _USUAL_VOCABULARY})

    def model_config_for(self, data: Shards) -> ModelConfig:
        """The full model shape: preset, overrides, and what the data decides."""
        # An id of the released model's tokenizer means nothing in another vocabulary.
        from_data: dict[str, int | None] = {
            "vocab_size": data.vocab_size,
            "bos_token_id": data.eod_id,
            "eos_token_id": data.eod_id,
        }
        if TRAITS[self.objective].is_masked:
            roles = SpecialTokens(data.tokenizer_dir)
            from_data |= {
                "bos_token_id": roles.cls_id,
                "eos_token_id": roles.sep_id,
                "pad_token_id": roles.pad_id,
            }
        return self._shape(from_data)

    def _shape(self, from_data: dict[str, int | None]) -> ModelConfig:
        given = {k: v for k, v in self.model.model_dump().items() if v is not None}
        name = given.pop("preset", None)
        given = {**from_data, **given}
        return preset(name, **given) if name else ModelConfig(**given)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _preset_of_masked(cls, data: Any) -> Any:
        """Start from a model that sees both sides where the objective needs one and none is named.

        Here and not where it is used, so that the stored config says which model was trained.
        """
        if not isinstance(data, dict) or not isinstance(data.get("model", {}), dict):
            return data
        traits = TRAITS.get(data.get("objective", "causal_lm"))
        if traits is None or not traits.is_masked or "preset" in data.get("model", {}):
            return data
        return {**data, "model": {"preset": _MASKED_PRESET, **data.get("model", {})}}

    @pydantic.model_validator(mode="after")
    def _length(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give the length of the run as steps or as tokens, one of them")
        return self


def check(
    config: PretrainConfig, world_size: int, *, has_data: bool = True, is_here: bool = True
) -> list[Problem]:
    """The mistakes that concern several keys, the data, or this machine.

    has_data, is_here: False where the run will be on other machines, and leaves out what can only
    be seen there.
    """
    together = combination(config, world_size)
    return [
        *check_batches(config.batch, world_size),
        *_check_length(config),
        *check_combination(together),
        *(check_tools(together) if is_here else ()),
        *(check_data(config) if has_data else check_without_data(config)),
        *(check_branch(config) if has_data else ()),
        *check_run_dir(config.run_dir),
        *check_log(config.log),
        *_check_deepspeed(config),
    ]


def check_batches(batch: Batch, ranks: int) -> Iterator[Problem]:
    """Every size of the batch must split evenly, and those of a ramp rise."""
    yield from check_batch(batch.global_batch_size, batch.micro_batch_size, ranks)
    for stage in batch.ramp:
        for problem in check_batch(stage.global_batch_size, batch.micro_batch_size, ranks):
            yield Problem("batch.ramp", problem.message)
    if not rises(batch.sizes):
        told = ", ".join(f"{size} until step {until}" for until, size in batch.sizes.ramp)
        yield Problem(
            "batch.ramp",
            f"{told}, then {batch.global_batch_size}: expected rising steps and rising sizes, "
            "below batch.global_batch_size",
        )


def _check_length(config: PretrainConfig) -> Iterator[Problem]:
    if config.tokens is not None and config.total_steps == 0:
        yield Problem(
            "tokens",
            f"{config.tokens} is less than one step of {config.positions(1)} "
            "(global_batch_size × seq_len); raise it, or lower batch.global_batch_size",
        )
    else:
        yield from check_schedule(config.schedule, config.total_steps)


def combination(config: PretrainConfig, world_size: int) -> Combination:
    """What must go together, on the device that this machine has."""
    return Combination(
        config.parallel,
        config.precision,
        config.compile,
        hardware.device_type(config.run.device),
        world_size,
        config.kernels,
        config.attention,
    )


def _check_deepspeed(config: PretrainConfig) -> Iterator[Problem]:
    for name in misplaced_keys(config.deepspeed.extra):
        yield Problem("deepspeed.extra", f"{name} must hold keys of its own, as in {name}: {{…}}")
    for theirs, ours in owned_keys(config.deepspeed.extra):
        yield Problem("deepspeed.extra", f"{theirs} is set by {ours}; write that instead")
