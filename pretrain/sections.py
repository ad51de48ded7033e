"""The sections of a pretraining config that no other stage has. Torch-free."""

from typing import Any, Literal

import pydantic

from data_prep.batch_sizes import BatchSizes
from data_prep.samples import Packing
from model.config import LABEL_KEYS, ModelConfig
from runtime import sections
from runtime.config import Config, key
from runtime.redaction import FreeForm

Objective = Literal[
    "causal_lm", "masked_lm", "masked_lm_nsp", "masked_lm_sop", "prefix_lm", "fill_in_the_middle"
]


_SHAPE_KEYS: Any = {
    name: (
        Any if info.annotation is None else info.annotation | None,
        key(None, info.description or ""),
    )
    for name, info in ModelConfig.model_fields.items()
    if name not in LABEL_KEYS  # a pretraining run has no labels
}


class Run(sections.Run):
    """Where a run lives, what makes it reproducible, and what it begins from."""

    branch_from: str | None = key(
        None,
        "Checkpoint of another run to begin from, RUN/checkpoints/step_N: with its weights, "
        "moments, place in the data and counters; the schedule and the length are this config's",
    )


class _Preset(Config):
    """The model: a preset, and every key of ModelConfig that differs from it."""

    preset: str | None = key(
        "llama-tiny",
        "Named shape to start from; none = write every key. Left out, a masked objective takes "
        "bert-tiny",
    )


Model = pydantic.create_model("Model", __base__=_Preset, **_SHAPE_KEYS)


class Source(Config):
    """A prepared directory and its share of the tokens."""

    path: str = key(..., "Directory that data_prep wrote")
    weight: float = key(
        1.0, "Relative share of the training tokens; 0 = none until a stage gives it one", ge=0
    )
    max_repetition: float | None = key(
        None,
        "Times that the run may pass through it; then the others take its share. none = no bound",
        unit="epochs",
        gt=0,
    )


class Stage(Config):
    """Other weights from a step on."""

    from_step: int = key(..., "First step of the stage", unit="steps", ge=1)
    weights: tuple[float, ...] = key(..., "Weight of each source of data.train, in its order")


class Data(Config):
    """What to train and validate on."""

    train: str | tuple[Source, ...] = key(
        "runs/demo/data", "Prepared directory, or a list of {path, weight, max_repetition}"
    )
    stages: tuple[Stage, ...] = key((), "Other weights later on: a list of {from_step, weights}")
    valid: str | None = key(
        None, "Prepared directory of the validation split; none = the first of train"
    )
    seq_len: int = key(512, "Tokens per training sequence", unit="tokens", ge=2)
    packing: Packing | None = key(
        None,
        "concat: documents back to back; documents: the same, but none attends to another; "
        "best_fit: whole documents side by side in a row, isolated; padded: one to a row. "
        "none = the objective's own: concat for causal_lm and prefix_lm, best_fit for masked_lm "
        "and fill_in_the_middle, padded for pairs",
    )
    workers: int | None = key(
        None,
        "Processes that make batches ahead of time; 0 = the training process itself, none = 2 with "
        "a GPU and 0 on a CPU",
        ge=0,
        le=64,
    )
    verify: bool = key(
        True, "Hash every shard before the first step; done once for a run and its data"
    )

    @property
    def sources(self) -> list[Source]:
        """The training sources as a list."""
        return [Source(path=self.train)] if isinstance(self.train, str) else list(self.train)

    @property
    def mixing(self) -> dict[str, Any]:
        """How the loader mixes the sources: its options of that name."""
        return {
            "max_repetition": [source.max_repetition for source in self.sources],
            "stages": [(stage.from_step, stage.weights) for stage in self.stages],
        }

    @property
    def valid_path(self) -> str:
        """Where the validation split lies."""
        return self.valid or self.sources[0].path


class Masking(Config):
    """Which tokens a masked objective hides, and what stands in their place."""

    fraction: float = key(0.15, "Share of the tokens that is predicted", gt=0, lt=1)
    unit: Literal["token", "word", "span"] = key(
        "token",
        "token: single tokens; word: whole words; span: several words on end, as in SpanBERT",
    )
    mask_fraction: float = key(0.8, "Share of the chosen tokens that becomes [MASK]", ge=0, le=1)
    random_fraction: float = key(
        0.1, "Share of them that becomes a random token; the rest stays as it is", ge=0, le=1
    )
    segmenter: Literal["none", "jieba"] = key(
        "none", "What finds the words of Chinese text: the tokenizer's own pieces, or jieba"
    )
    mean_span: float = key(
        3.8,
        "Mean length of a span (geometric, at most 10; 3.8 is SpanBERT's p = 0.2)",
        unit="words",
        ge=1,
        le=5,
    )


class Pairs(Config):
    """How masked_lm_nsp and masked_lm_sop make pairs."""

    short_fraction: float = key(
        0.1, "Share of the pairs that is cut to a random shorter length, as in BERT", ge=0, le=1
    )


class Infilling(Config):
    """How fill_in_the_middle turns documents around (Bavarian et al. 2022)."""

    fraction: float = key(0.5, "Share of the documents that is turned around", ge=0, le=1)
    spm_fraction: float = key(
        0.5,
        "Share of those in the order suffix, prefix, middle; the rest prefix, suffix, middle",
        ge=0,
        le=1,
    )
    prefix: str = key("<|fim_prefix|>", "Token before the part that comes first", min_length=1)
    middle: str = key("<|fim_middle|>", "Token before the part to fill in", min_length=1)
    suffix: str = key("<|fim_suffix|>", "Token before the part that comes last", min_length=1)


class RampStage(Config):
    """A smaller batch, before a step."""

    until_step: int = key(..., "First step that takes more", unit="steps", ge=1)
    global_batch_size: int = key(
        ..., "Sequences per optimizer step until then", unit="sequences", ge=1
    )


class Loss(Config):
    """What is added to the cross entropy in training; validation has none of it."""

    label_smoothing: float = key(
        0.0, "Share of each target that is spread over the whole vocabulary", ge=0, lt=1
    )
    z_loss: float = key(
        0.0,
        "Times the mean square of log Σ exp of the logits is added, which keeps them from drifting "
        "(PaLM: 1e-4)",
        ge=0,
    )


class Batch(Config):
    """How many sequences make a step."""

    global_batch_size: int = key(
        32, "Sequences per optimizer step, all ranks", unit="sequences", ge=1
    )
    micro_batch_size: int | None = key(
        None, "Sequences per forward pass and rank; none = all at once", unit="sequences", ge=1
    )
    ramp: tuple[RampStage, ...] = key(
        (),
        "Smaller batches at first: a list of {until_step, global_batch_size}, both rising; then "
        "batch.global_batch_size",
    )

    @property
    def sizes(self) -> BatchSizes:
        """How many sequences each step takes."""
        ramp = tuple((stage.until_step, stage.global_batch_size) for stage in self.ramp)
        return BatchSizes(self.global_batch_size, ramp)


class Evaluate(Config):
    """Evaluation on the validation split."""

    every_steps: int = key(250, "Evaluate every so many steps and at the end; 0 = never", ge=0)
    max_sequences: int = key(
        512, "Sequences per evaluation; 0 = the whole split", unit="sequences", ge=0
    )
    prompts: tuple[str, ...] = key(
        (),
        "Texts that the model continues at each evaluation, into samples.jsonl. A masked model "
        "fills them in: where they hold its mask token, or else some words that are hidden",
        max_length=32,
    )
    sample_tokens: int = key(64, "Longest continuation of a prompt", unit="tokens", ge=1, le=4096)
    temperature: float = key(
        0.7, "Of the continuations; 0 always takes the likeliest token", ge=0, le=10
    )


class DeepSpeed(Config):
    """Expert settings that are passed through."""

    extra: FreeForm = key({}, "Merged into the generated DeepSpeed configuration, last")


__all__ = [
    "Batch",
    "Data",
    "DeepSpeed",
    "Evaluate",
    "Infilling",
    "Loss",
    "Masking",
    "Model",
    "Objective",
    "Pairs",
    "RampStage",
    "Run",
    "Source",
    "Stage",
]
