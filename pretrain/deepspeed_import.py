"""`python -m pretrain import-deepspeed`: a run of DeepSpeed goes on as a run of Ingot."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import orjson
import torch
from torch import Tensor

from data_prep.loader import Loader
from data_prep.shards import Shards
from model.config import ModelConfig
from model.hf.config import CheckpointError
from model.hf.directory import ModelFiles, stored_names
from model.hf.shards import Part
from model.hf.state import Slot, slots
from pretrain.config import PretrainConfig, check
from pretrain.objectives import make_objective
from pretrain.tokenizer import begin_texts_with
from runtime import provenance
from runtime.checkpoint import list_checkpoints
from runtime.checkpoint.commit import Attempt
from runtime.checkpoint.format import SCHEMA, TRAINING, step_dir
from runtime.checkpoint.slices import slice_name, write_slices
from runtime.config import load
from runtime.deepspeed_checkpoint import MASTER, MOMENTS, DeepSpeedCheckpoint, open_checkpoint
from runtime.errors import EXIT_BAD_INPUT, EXIT_OK, UserError
from runtime.run_directory import describe_run, prepare_run_directory
from runtime.sections import held_as

USAGE = """\
usage: python -m pretrain import-deepspeed CONFIG.yaml DS_DIR [--tag TAG] [key=value …]

Write what DeepSpeed's engine.save_checkpoint left in DS_DIR (ZeRO 0 to 3, any number of ranks, or
a universal checkpoint) as the first checkpoint of the config's run: fp32 master weights, AdamW's
moments, the step. The parameters may have our names or those of transformers' class. Training with
the same config then goes on from there, with the data of that step."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SHARD_BYTES = 2 * 10**9  # of one file of the model; about as much more in fp32 is held in memory
_FILE_BYTES = 2**30  # of one file of optimizer slices, which is held in memory

# Reads one whole tensor of ours: its name, and master, exp_avg or exp_avg_sq.
Read = Callable[[str, str], Tensor]


class _Masters(Mapping[str, Tensor]):
    """The master weights of a checkpoint by its own names, each read when asked for."""

    def __init__(self, source: DeepSpeedCheckpoint) -> None:
        self._source = source

    def __getitem__(self, name: str) -> Tensor:
        return self._source.read(name, MASTER)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.shapes)

    def __len__(self) -> int:
        return len(self._source.shapes)

    def without_data(self) -> dict[str, Tensor]:
        """Return tensors of the same names and shapes that hold nothing."""
        shapes = self._source.shapes.items()
        return {name: torch.empty(shape, device="meta") for name, shape in shapes}


class _Words(NamedTuple):
    config: Path
    source: Path
    tag: str | None
    overrides: list[str]


def main(arguments: list[str]) -> int:
    """Run the command; exit status 2 where config or checkpoint do not fit."""
    if {"-h", "--help"} & set(arguments) or not arguments:
        print(USAGE)
        return EXIT_OK if arguments else EXIT_BAD_INPUT
    words = _words(arguments)
    config = load(PretrainConfig, words.config, words.overrides, lambda c: check(c, 1))
    os.umask(0o077)  # runs are private to their user
    source = open_checkpoint(words.source, words.tag)
    for line in _differences(config, source):
        print(line)
    path = import_checkpoint(config, source)
    print(f"saved {path}; run `python -m pretrain {words.config}` to go on from step {source.step}")
    return EXIT_OK


def _words(arguments: list[str]) -> _Words:
    tag, plain, overrides = None, [], []
    rest = iter(arguments)
    for word in rest:
        if word == "--tag" or word.startswith("--tag="):
            tag = word.partition("=")[2] or next(rest, "")
        elif "=" in word:
            overrides.append(word)
        else:
            plain.append(word)
    if len(plain) != 2 or any(word.startswith("-") for word in plain):
        raise UserError(
            f"expected CONFIG.yaml and DS_DIR, got {' '.join(plain) or 'neither'}; see --help",
            status=EXIT_BAD_INPUT,
        )
    return _Words(Path(plain[0]), Path(plain[1]), tag, overrides)


def _differences(config: PretrainConfig, source: DeepSpeedCheckpoint) -> Iterator[str]:
    """What the run goes on with that it did not have before."""
    ours = {"betas": tuple(config.optim.betas), "eps": config.optim.eps}
    ours["weight_decay"] = config.optim.weight_decay
    for name, value in ours.items():
        groups = source.settings.get(name, [])
        before = {tuple(v) if isinstance(v, list | tuple) else v for v in groups}
        if before and value not in before:
            print_of = ", ".join(sorted(map(str, before)))
            yield f"changed: optim.{name} was {print_of}, now {value}"
    if source.frozen:
        yield (
            f"changed: {len(source.frozen)} parameters were frozen ({source.frozen[0]} …); here "
            "they are trained, with moments that begin at zero"
        )


def import_checkpoint(config: PretrainConfig, source: DeepSpeedCheckpoint) -> Path:
    """Write a checkpoint into the config's run directory, and return its directory.

    Raises UserError where the parameters are not those of the config's model, and for a run that
    has checkpoints of its own.
    """
    root = config.run_dir / "checkpoints"
    _refuse_other_runs(config, root)
    train = [Shards(entry.path, "train") for entry in config.data.sources]
    model_config = config.model_config_for(train[0])
    objective = make_objective(config, train, config.run.seed)
    try:
        plan = slots(model_config, objective.head)
        read = _reader(source, plan, model_config, objective.head)
    except CheckpointError as error:
        raise UserError(f"{source.directory}: {error}", status=EXIT_BAD_INPUT) from None
    loader = Loader(
        list(zip(train, [entry.weight for entry in config.data.sources], strict=True)),
        global_batch_size=config.batch.global_batch_size,
        seed=config.run.seed,
        layout=objective.layout,
        collate=objective.collate,
        ramp=config.batch.sizes.ramp,
        **config.data.mixing,
    )
    loader.step = source.step
    state = {
        "schema": SCHEMA,
        "optimizer_steps": source.optimizer_steps,
        "shapes": {slot.ours: list(slot.shape) for slot in plan},
        "step": source.step,
        "tokens_seen": config.positions(source.step),
        "loader": loader.state_dict(),
        "config": config.model_dump(mode="json"),
        "versions": provenance.versions(),
        "world_size": 1,
    }
    prepare_run_directory(config.run_dir)
    describe_run(config.run_dir, config)
    attempt = Attempt(root, source.step)
    attempt.begin()
    try:
        dtype = _DTYPES[held_as(config.precision)]
        _write_model(attempt, model_config, objective.head, dtype, train[0], read)
        if objective.layout.by_document and objective.head == "causal_lm":
            begin_texts_with(attempt.directory, train[0].eod_id)
        _write_slices(attempt, plan, read)
        with attempt.create(attempt.directory / TRAINING / "state.json") as file:
            file.write(orjson.dumps(state, option=orjson.OPT_INDENT_2))
        attempt.commit(attempt.entries)
    except OSError as error:
        raise UserError(f"{root}: not saved: {error}") from error
    finally:
        attempt.discard()
    return step_dir(root, source.step)


def _refuse_other_runs(config: PretrainConfig, root: Path) -> None:
    if list_checkpoints(root):
        raise UserError(
            f"{root}: holds checkpoints already; name a new run.dir", status=EXIT_BAD_INPUT
        )
    if config.optim.name != "adamw":
        raise UserError(
            f"optim.name: {config.optim.name} keeps other moments than AdamW's, which are all that "
            "is read of DeepSpeed; write adamw",
            status=EXIT_BAD_INPUT,
        )


def _reader(
    source: DeepSpeedCheckpoint, plan: list[Slot], model_config: ModelConfig, head: str
) -> Read:
    """How a tensor of ours is read: by our own name, or joined from those of transformers.

    Weights and moments map alike: a moment has a number for each of the weight's.
    """
    if source.shapes == {slot.ours: slot.shape for slot in plan}:
        return source.read
    stored = stored_names(_Masters(source), model_config, head)
    parts = {slot.ours: slot for slot in plan}

    def read(name: str, key: str) -> Tensor:
        slot = parts[name]
        return slot.to_ours([source.read(stored[theirs], key) for theirs in slot.theirs])

    return read


def _write_model(
    attempt: Attempt,
    model_config: ModelConfig,
    head: str,
    dtype: torch.dtype,
    data: Shards,
    read: Read,
) -> None:
    """Write the model's files as several writers would, one after the other, to bound memory."""
    plan = slots(model_config, head)
    size = sum(math.prod(slot.shape) for slot in plan) * dtype.itemsize
    writers = 1 + size // _SHARD_BYTES
    for writer in range(writers):
        files = ModelFiles(
            model_config,
            head,
            dtype,
            tokenizer_dir=data.tokenizer_dir,
            max_shard_bytes=_SHARD_BYTES,
            part=Part(writer, writers),
        )
        masters = {name: read(name, MASTER) for name in files.wanted()}
        files.write(attempt.directory, masters, attempt.create)


def _write_slices(attempt: Attempt, plan: list[Slot], read: Read) -> None:
    """Write weights and moments as slices that are whole tensors, in files of bounded size."""
    held: dict[str, Tensor] = {}
    number = 0
    for slot in plan:
        for key in (MASTER, *MOMENTS):
            held[slice_name(slot.ours, key, 0)] = read(slot.ours, key).reshape(-1).clone()
        is_last = slot is plan[-1]
        if is_last or sum(t.numel() * t.itemsize for t in held.values()) >= _FILE_BYTES:
            name = f"optimizer_{number:05d}.safetensors"
            with attempt.create(attempt.directory / TRAINING / name) as file:
                write_slices(file, held)
            held, number = {}, number + 1
