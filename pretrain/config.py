"""The pretraining config, and every check that needs no torch and no process group."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from data_prep.shards import Shards
from model.config import ModelConfig
from model.presets import preset
from runtime import hardware, sections
from runtime.checks import check_batch, check_run_dir, check_schedule
from runtime.config import Config, Problem, key, section
from runtime.deepspeed_config import misplaced_keys, owned_keys
from runtime.errors import UserError

_FROM_ELSEWHERE = {"num_labels", "id2label"}  # a pretraining run has no labels

_SHAPE_KEYS: Any = {
    name: (
        Any if info.annotation is None else info.annotation | None,
        key(None, info.description or ""),
    )
    for name, info in ModelConfig.model_fields.items()
    if name not in _FROM_ELSEWHERE
}


class _Preset(Config):
    """The model: a preset, and every key of ModelConfig that differs from it."""

    preset: str | None = key("llama-tiny", "Named shape to start from; none = write every key")


Model = pydantic.create_model("Model", __base__=_Preset, **_SHAPE_KEYS)


class Source(Config):
    """A prepared directory and its share of the tokens."""

    path: str = key(..., "Directory that data_prep wrote")
    weight: float = key(1.0, "Relative share of the training tokens", gt=0)


class Data(Config):
    """What to train and validate on."""

    train: str | tuple[Source, ...] = key(
        "runs/demo/data", "Prepared directory, or a list of {path, weight}"
    )
    valid: str | None = key(
        None, "Prepared directory of the validation split; none = the first of train"
    )
    seq_len: int = key(512, "Tokens per training sequence", unit="tokens", ge=2)
    packing: Literal["concat", "documents"] = key(
        "concat",
        "concat: documents back to back; documents: the same, but none attends to another",
    )

    verify: bool = key(
        True, "Hash every shard before the first step; done once for a run and its data"
    )

    @property
    def sources(self) -> list[Source]:
        """The training sources as a list."""
        return [Source(path=self.train)] if isinstance(self.train, str) else list(self.train)

    @property
    def valid_path(self) -> str:
        """Where the validation split lies."""
        return self.valid or self.sources[0].path


class Batch(Config):
    """How many sequences make a step."""

    global_batch_size: int = key(
        32, "Sequences per optimizer step, all ranks", unit="sequences", ge=1
    )
    micro_batch_size: int | None = key(
        None, "Sequences per forward pass and rank; none = all at once", unit="sequences", ge=1
    )


class Evaluate(Config):
    """Evaluation on the validation split."""

    every_steps: int = key(250, "Evaluate every so many steps and at the end; 0 = never", ge=0)
    max_sequences: int = key(
        512, "Sequences per evaluation; 0 = the whole split", unit="sequences", ge=0
    )


class DeepSpeed(Config):
    """Expert settings that are passed through."""

    extra: dict[str, Any] = key({}, "Merged into the generated DeepSpeed configuration, last")


class PretrainConfig(Config):
    """A pretraining run."""

    run: sections.Run = section(sections.Run, "The run")
    model: Model = section(Model, "The model")
    data: Data = section(Data, "The data")
    objective: Literal["causal_lm"] = key("causal_lm", "What the model learns to predict")
    batch: Batch = section(Batch, "The batch")
    steps: int | None = key(None, "Length of the run; give steps or tokens", unit="steps", ge=1)
    tokens: int | None = key(
        None,
        "Length of the run; never exceeded, so the last partial step is left out",
        unit="tokens",
        ge=1,
    )
    optim: sections.Optim = section(sections.Optim, "The optimizer")
    schedule: sections.Schedule = section(sections.Schedule, "The learning rate")
    parallel: sections.Parallel = section(sections.Parallel, "The ranks")
    precision: sections.Precision = key(
        "bf16", "Of forward and backward; master weights are fp32 always"
    )
    compile: bool = key(False, "torch.compile each block (needs a C++ compiler on a CPU)")
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
        """Positions in one global batch."""
        return self.batch.global_batch_size * self.data.seq_len

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or (self.tokens or 0) // self.tokens_per_step

    def micro_batch_size(self, world_size: int) -> int:
        """Sequences per forward pass on one rank."""
        return self.batch.micro_batch_size or self.batch.global_batch_size // world_size

    def accumulation_steps(self, world_size: int) -> int:
        """Forward passes per optimizer step on one rank."""
        return self.batch.global_batch_size // (self.micro_batch_size(world_size) * world_size)

    def model_config_for(self, data: Shards) -> ModelConfig:
        """The full model shape: preset, overrides, and what the data decides."""
        given = {k: v for k, v in self.model.model_dump().items() if v is not None}
        name = given.pop("preset", None)
        # An id of the released model's tokenizer means nothing in another vocabulary.
        from_data = {
            "vocab_size": data.vocab_size,
            "bos_token_id": data.eod_id,
            "eos_token_id": data.eod_id,
        }
        given = {**from_data, **given}
        return preset(name, **given) if name else ModelConfig(**given)

    @pydantic.model_validator(mode="after")
    def _length(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give the length of the run as steps or as tokens, one of them")
        return self


def check(config: PretrainConfig, world_size: int) -> list[Problem]:
    """The mistakes that concern several keys, the data, or this machine."""
    return [
        *check_batch(config.batch.global_batch_size, config.batch.micro_batch_size, world_size),
        *_check_length(config),
        *_check_precision(config),
        *_check_data(config),
        *check_run_dir(config.run_dir),
        *_check_deepspeed(config),
    ]


def _check_length(config: PretrainConfig) -> Iterator[Problem]:
    if config.tokens is not None and config.total_steps == 0:
        yield Problem(
            "tokens",
            f"{config.tokens} is less than one step of {config.tokens_per_step} "
            "(global_batch_size × seq_len); raise it, or lower batch.global_batch_size",
        )
    else:
        yield from check_schedule(config.schedule, config.total_steps)


def _check_precision(config: PretrainConfig) -> Iterator[Problem]:
    device = hardware.device_type(config.run.device)
    if config.precision == "fp16" and device == "cpu":
        yield Problem("precision", "fp16 does not run on a CPU; write bf16 or fp32")
    if config.parallel.zero_stage == 0 and config.precision != "fp32":
        yield Problem(
            "parallel.zero_stage",
            f"stage 0 with {config.precision} takes a wrong first step in DeepSpeed; "
            "write 1, which costs nothing on one rank, or precision: fp32",
        )
    if config.parallel.zero_stage == 0 and config.parallel.offload != "none":
        yield Problem(
            "parallel.offload", "needs parallel.zero_stage 1, 2 or 3; stage 0 shards nothing"
        )
    if config.compile and device == "cpu" and not hardware.has_cpp_compiler():
        yield Problem(
            "compile", "needs a C++ compiler and none is on PATH; install g++, or write false"
        )


def open_data(path: str, split: str) -> Shards:
    """Open one split of a prepared directory; raises UserError."""
    return Shards(path, split=split)


def _check_data(config: PretrainConfig) -> Iterator[Problem]:
    opened = []
    for source in config.data.sources:
        try:
            opened.append(open_data(source.path, "train"))
        except UserError as error:
            yield Problem("data.train", str(error))
    # Where the whole directory is bad, the line above says so already.
    broken = {s.path for s in config.data.sources} - {str(o.directory) for o in opened}
    if config.evaluate.every_steps and config.data.valid_path not in broken:
        yield from _check_validation(config)
    if opened:
        yield from _check_tokenizers(config, opened)
        yield from _check_model(config, opened[0])


def _check_validation(config: PretrainConfig) -> Iterator[Problem]:
    mend = "prepare it with split.valid > 0, or write evaluate.every_steps: 0"
    try:
        if open_data(config.data.valid_path, "valid").tokens < 2:
            yield Problem("data.valid", f"{config.data.valid_path} has an empty split; {mend}")
    except UserError as error:
        yield Problem("data.valid", f"{error}; {mend}")


def _check_tokenizers(config: PretrainConfig, opened: list[Shards]) -> Iterator[Problem]:
    first = opened[0]
    for other in opened[1:]:
        if other.tokenizer_sha256 != first.tokenizer_sha256:
            yield Problem(
                "data.train",
                f"{other.directory} was made with another tokenizer than {first.directory}; "
                "prepare both with the same tokenizer.path",
            )
    for shards in opened:
        if shards.tokens < config.data.seq_len:
            yield Problem(
                "data.seq_len",
                f"{config.data.seq_len} is more than all {shards.tokens} tokens of "
                f"{shards.directory}",
            )


def _check_model(config: PretrainConfig, data: Shards) -> Iterator[Problem]:
    try:
        model = config.model_config_for(data)
    except pydantic.ValidationError as error:
        for item in error.errors(include_url=False):
            dotted = ".".join(map(str, ("model", *item["loc"])))
            yield Problem(dotted, item["msg"].removeprefix("Value error, "))
        return
    except ValueError as error:
        yield Problem("model.preset", str(error))
        return
    if model.vocab_size != data.vocab_size:
        yield Problem(
            "model.vocab_size",
            f"{model.vocab_size} differs from the {data.vocab_size} of the tokenizer in "
            f"{data.directory}; leave the key out and it is taken from the data",
        )
    if config.data.seq_len > model.max_seq_len:
        yield Problem(
            "data.seq_len",
            f"{config.data.seq_len} is more than model.max_seq_len = {model.max_seq_len}; "
            f"write model.max_seq_len: {config.data.seq_len}, or shorten the sequences",
        )


def _check_deepspeed(config: PretrainConfig) -> Iterator[Problem]:
    for name in misplaced_keys(config.deepspeed.extra):
        yield Problem("deepspeed.extra", f"{name} must hold keys of its own, as in {name}: {{…}}")
    for theirs, ours in owned_keys(config.deepspeed.extra):
        yield Problem("deepspeed.extra", f"{theirs} is set by {ours}; write that instead")
