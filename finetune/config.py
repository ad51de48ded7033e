"""The fine-tuning config, and every check that needs no torch and no process group."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import pydantic

from finetune.adapters.config import (
    Adapter,
    check_adapter,
    check_with_task,
    check_with_transfer,
    with_rate,
)
from finetune.parallel.config import Parallel, check_parallel
from finetune.robust.config import Robust, check_classes, check_robust, check_with_model
from finetune.sampling import count_different, draw, draw_per_class
from finetune.tasks import task_of
from finetune.tasks.base import Task, folds_of, shorten, split_dev
from finetune.tasks.config import TaskKeys
from finetune.tokenizer import TextTokenizer
from finetune.transfer.config import Transfer, check_transfer
from model.config import ModelConfig
from model.hf import CheckpointError, read_config
from runtime import sections
from runtime.checkpoint.format import TRAINING, list_checkpoints, read_json
from runtime.checks import check_batch, check_log, check_run_dir, check_schedule
from runtime.config import Config, Problem, flat, key, section
from runtime.errors import UserError

BEST = "best"  # in a run directory: the model with the best dev score
# What may differ when an interrupted run is taken up again: nothing that what was trained so far,
# or the meaning of its scores, depends on.
_FREE = (
    *("run.name", "run.dir", "run.device", "data.test", "batch.micro_batch_size", "epochs"),
    *("steps", "precision", "evaluate.every_steps", "patience"),
    *("checkpoint.", "health.", "log.", "parallel."),
)


class Data(Config):
    """Files of the task's kind, mostly .jsonl, .csv or .tsv; each also packed as .gz."""

    train: str = key(..., "Texts to learn from")
    dev: str | None = key(
        None, "Texts to choose the best model by; none = a share of every class of train"
    )
    test: str | None = key(None, "Texts for the final scores; none = those of dev")
    dev_fraction: float = key(0.1, "Share of train that becomes dev", gt=0, le=0.5)
    examples: int | None = key(
        None, "Learn from so many examples of train, drawn by run.seed; none = from all", ge=1
    )
    examples_per_class: int | None = key(
        None, "Learn from so many examples of every class, drawn by run.seed; none = all", ge=1
    )
    folds: int | None = key(
        None,
        "Cut train into so many parts, one of which is test instead (python -m finetune kfold)",
        ge=2,
        le=1000,
    )
    fold: int = key(0, "The part that is test, from 0", ge=0)


class Batch(Config):
    """How many texts make a step."""

    global_batch_size: int = key(32, "Texts per optimizer step, all ranks", unit="texts", ge=1)
    micro_batch_size: int | None = key(
        None, "Texts per forward pass and rank; none = all at once", unit="texts", ge=1
    )


class Optim(sections.Optim):
    """The optimizer, with defaults for trained models."""

    lr: float = key(
        5e-5, "Peak learning rate; where none is given, an adapter.kind has its own", gt=0
    )
    betas: tuple[float, float] = key(
        (0.9, 0.999),
        "Decay rates of AdamW's two moments; of Lion's update and its momentum, where 0.9, 0.99 "
        "are usual",
    )
    weight_decay: float = key(0.01, "Decoupled decay of the weight matrices", ge=0)


class Evaluate(Config):
    """Evaluation on the dev set."""

    metric: str | None = key(
        None, "The score that chooses the best model, one of the task's; none = its first"
    )
    every_steps: int | None = key(
        None, "Evaluate every so many steps and at the end; none = after each epoch", ge=1
    )


class FinetuneConfig(Config):
    """A fine-tuning run."""

    run: sections.Run = section(sections.Run, "The run")
    model: str = key(
        ..., "Model directory, ours or Hugging Face's, or a run: its newest whole checkpoint"
    )
    task: TaskKeys = section(TaskKeys, "The task")
    transfer: Transfer = section(Transfer, "How much of the checkpoint is reused")
    adapter: Adapter = section(Adapter, "Parameter-efficient fine-tuning")
    data: Data = key(..., "The data")
    batch: Batch = section(Batch, "The batch")
    epochs: int | None = key(
        None, "Length of the run, if not given as steps; none = 3", unit="passes over train", ge=1
    )
    steps: int | None = key(None, "Length of the run, instead of epochs", unit="steps", ge=1)
    optim: Optim = section(Optim, "The optimizer")
    schedule: sections.Schedule = section(sections.Schedule, "The learning rate")
    robust: Robust = section(Robust, "Robust training")
    precision: Literal["auto", "fp32", "bf16"] = key(
        "auto",
        "Of forward and backward; weights are fp32 always; auto = bf16 on a GPU that has it",
    )
    parallel: Parallel = section(Parallel, "How the model is spread over the ranks")
    evaluate: Evaluate = section(Evaluate, "Evaluation")
    patience: int = key(
        0, "Stop after so many evaluations in a row without a new best; 0 = never", ge=0
    )
    checkpoint: sections.Checkpoint = section(sections.Checkpoint, "Saving")
    health: sections.Hangs = section(sections.Hangs, "When a rank makes no progress")
    log: sections.Log = section(sections.Log, "Logs")

    @property
    def run_dir(self) -> Path:
        """The run directory, with {name} filled in."""
        return Path(self.run.dir.replace("{name}", self.run.name))

    @property
    def metric(self) -> str:
        """The score that chooses the best model."""
        return self.evaluate.metric or task_of(self.task).metrics[0]

    def micro_batch_size(self, world_size: int) -> int:
        """Texts per forward pass on one rank."""
        return self.batch.micro_batch_size or self.batch.global_batch_size // world_size

    def steps_per_epoch(self, examples: int) -> int:
        """Optimizer steps of one pass over so many examples; the last may be a smaller one."""
        return -(-examples // self.batch.global_batch_size)

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or (self.epochs or 3) * self.steps_per_epoch(examples)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _rate(cls, values: Any) -> Any:
        return with_rate(values)

    @pydantic.model_validator(mode="after")
    def _length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give the length of the run as steps or as epochs, one of them")
        return self


class Sets(NamedTuple):
    """The examples of a run."""

    train: list[Any]
    dev: list[Any]
    test: list[Any] | None
    labels: list[str]


def read_sets(config: FinetuneConfig) -> tuple[Sets, list[Problem]]:
    """Read all data files; the problems name every wrong line, and labels that don't belong."""
    task = task_of(config.task)
    train, problems = _read(config, task, "train")
    labels = [] if problems else task.label_names(train)
    is_train_good = not problems
    if is_train_good:
        problems += _of_set(config, task, "train", train, labels)
        train, found = _drawn(config, train)
        problems += found
    others: dict[str, list[Any]] = {}
    for name in ("dev", "test"):
        if getattr(config.data, name) is None:
            continue
        others[name], found = _read(config, task, name)
        problems += found
        if is_train_good:
            problems += _of_set(config, task, name, others[name], labels)
    if config.data.folds is not None:
        parts = folds_of(train, config.data.folds, config.run.seed)
        others["test"] = [e for e, i in zip(train, parts, strict=True) if i == config.data.fold]
        train = [e for e, i in zip(train, parts, strict=True) if i != config.data.fold]
    if "dev" not in others:
        train, others["dev"] = split_dev(train, config.data.dev_fraction, config.run.seed)
        if is_train_good and not others["dev"]:
            problems.append(
                Problem("data.dev", "no class of train has two different texts; give a dev file")
            )
    return Sets(train, others["dev"], others.get("test"), labels), problems


def _drawn(config: FinetuneConfig, train: list[Any]) -> tuple[list[Any], list[Problem]]:
    """The examples of train to learn from, where the config asks for fewer than all."""
    data, seed = config.data, config.run.seed
    if data.examples_per_class is not None:
        if data.examples is not None:
            return train, [Problem("data.examples", "and examples_per_class: give one of them")]
        if not any(example.stratum for example in train):
            kind = config.task.kind
            message = f"task {kind} has no classes to draw from; write data.examples"
            return train, [Problem("data.examples_per_class", message)]
        return draw_per_class(train, data.examples_per_class, seed), []
    if data.examples is None:
        return train, []
    different = count_different(train)
    if data.examples > different:
        message = f"{data.examples} is more than the {different} different examples of train"
        return train, [Problem("data.examples", f"{message}; write that or less, or remove it")]
    return draw(train, data.examples, seed), []


def _read(config: FinetuneConfig, task: Task, name: str) -> tuple[list[Any], list[Problem]]:
    dotted = f"data.{name}"
    try:
        examples, wrong = task.read(Path(getattr(config.data, name)))
    except UserError as error:
        return [], [Problem(dotted, str(error))]
    return examples, [Problem(dotted, line) for line in wrong]


def _of_set(
    config: FinetuneConfig, task: Task, name: str, examples: list[Any], labels: list[str]
) -> Iterator[Problem]:
    path = Path(getattr(config.data, name))
    wrong = [f"{path}: {text}" for text in task.check(name, examples, labels)]
    yield from (Problem(f"data.{name}", text) for text in shorten(wrong, path))


def model_directory(path: Path) -> Path:
    """The model directory that a path stands for: itself, a run's best, or its newest checkpoint.

    Nothing is verified here. Raises UserError where the path holds no model.
    """
    if (path / "config.json").is_file():
        return path
    if (path / BEST / "config.json").is_file():
        return path / BEST
    committed = list_checkpoints(checkpoints_directory(path))
    if committed:
        return committed[-1].path
    if not path.exists():
        raise UserError(f"{path}: no such directory; models are read from local directories only")
    raise UserError(f"{path}: neither a model directory (config.json) nor a run with checkpoints")


def class_names(shape: ModelConfig) -> dict[int, str]:
    """The classes of a model by number; `model` leaves Hugging Face's default names out."""
    return shape.id2label or {i: f"LABEL_{i}" for i in range(shape.num_labels)}


def head_of(config: FinetuneConfig, labels: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The model's head for the task, and what its shape needs, as keys of ModelConfig."""
    task = task_of(config.task)
    head = task.head_of(read_config(model_directory(Path(config.model))))
    return head, task.head_settings(labels)


def cuts_examples(config: FinetuneConfig) -> bool:
    """Whether long examples are cut into several, which are counted once they are encoded."""
    return task_of(config.task).cuts_examples


def checkpoints_directory(path: Path) -> Path:
    """Where the checkpoints of a run lie, given the run or that directory itself."""
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


# --- checks ----------------------------------------------------------------------------------


def check(config: FinetuneConfig, world_size: int) -> list[Problem]:
    """The mistakes that concern several keys, the data, the model, or this machine."""
    return [
        *check_batch(config.batch.global_batch_size, config.batch.micro_batch_size, world_size),
        *check_robust(config.robust, config.task.kind),
        *check_with_task(config.adapter, config.task, config.robust),
        *check_parallel(config.parallel, config.precision),
        *_check_quantized(config),
        *_check_data(config),
        *_check_model(config),
        *check_run_dir(config.run_dir),
        *check_log(config.log),
        *check_resume(config),
    ]


def _check_data(config: FinetuneConfig) -> Iterator[Problem]:
    known = task_of(config.task).metrics
    if config.metric not in known:
        near = difflib.get_close_matches(config.metric, known, n=1)
        mend = f"did you mean {near[0]}?" if near else f"take one of {', '.join(known)}"
        yield Problem(
            "evaluate.metric", f"task {config.task.kind} has no score {config.metric!r}; {mend}"
        )
    sets, problems = read_sets(config)
    yield from problems or check_classes(config.robust, sets.labels)
    yield from _check_folds(config.data, sets if not problems else None)
    if not problems and not task_of(config.task).cuts_examples:
        yield from check_schedule(config.schedule, config.total_steps(len(sets.train)))


def _check_quantized(config: FinetuneConfig) -> Iterator[Problem]:
    if config.adapter.quantize != "none" and config.parallel.zero is not None:
        yield Problem(
            "adapter.quantize",
            "ZeRO can't cut quantized weights; write parallel.zero_stage: none, or quantize: none",
        )


def _check_folds(data: Data, sets: Sets | None) -> Iterator[Problem]:
    folds = data.folds or 0
    if data.folds is None:
        if data.fold:
            yield Problem("data.fold", "is of data.folds; give that, or remove the key")
    elif data.fold >= folds:
        yield Problem("data.fold", f"{data.fold} of {folds} folds; write {folds - 1} or less")
    elif data.test is not None:
        yield Problem("data.test", "a part of train is test (data.folds); remove one of the two")
    elif sets is not None and not sets.test:
        yield Problem("data.folds", f"{folds} parts are more than there are texts; write fewer")


def _check_model(config: FinetuneConfig) -> Iterator[Problem]:
    try:
        directory = model_directory(Path(config.model))
        shape = read_config(directory)
        tokenizer = TextTokenizer(directory, shape)
    except (UserError, CheckpointError) as error:
        yield Problem("model", str(error))
        return
    if not any(directory.glob("model*.safetensors*")):
        is_adapter = (directory / "adapter_config.json").is_file()
        mend = f"merge the adapter: python -m finetune merge {directory} OUT" if is_adapter else ""
        yield Problem(
            "model", f"{directory}: no weights (model.safetensors)" + (mend and f"; {mend}")
        )
    yield from check_with_model(
        config.robust, shape, tokenizer, adapter_dropout=config.adapter.dropout
    )
    if tokenizer.vocab_size > shape.vocab_size:
        yield Problem(
            "model",
            f"{directory}: its tokenizer has {tokenizer.vocab_size} tokens but the model only "
            f"{shape.vocab_size}; take the tokenizer that the model was trained with",
        )
    if shape.family == "roberta" and tokenizer.pad_id != shape.pad_token_id:
        yield Problem(
            "model",
            f"{directory}: its tokenizer pads with token {tokenizer.pad_id}, and the model counts "
            f"positions from pad_token_id {shape.pad_token_id} of config.json; make them one",
        )
    if config.task.max_length > shape.max_seq_len:
        yield Problem(
            "task.max_length",
            f"{config.task.max_length} is more than the model's {shape.max_seq_len} positions; "
            f"write {shape.max_seq_len} or less",
        )
    task = task_of(config.task)
    head = task.head_of(shape)
    yield from (Problem("task.kind", text) for text in task.check_model(shape, tokenizer))
    yield from check_transfer(config.transfer, shape, head)
    yield from check_adapter(config.adapter, shape, head, config.task.max_length)
    yield from check_with_transfer(config.adapter, config.transfer)


def check_resume(config: Any) -> Iterator[Problem]:
    """Refuse to go on with a run under settings that its first part was not trained with.

    config: of any kind, with a run_dir.
    """
    committed = list_checkpoints(config.run_dir / "checkpoints")
    if not committed:
        return
    try:
        stored = flat(read_json(committed[-1].path / TRAINING / "state.json")["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # damaged: the run itself looks for one that is whole
    for name, value in flat(config.model_dump(mode="json")).items():
        if name.startswith(_FREE) or stored.get(name, value) == value:
            continue
        yield Problem(
            name,
            f"{value!r}, but the run in {config.run_dir} was begun with {stored[name]!r}; "
            "restore it to go on with that run, or choose another run.dir",
        )
