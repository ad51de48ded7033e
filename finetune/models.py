"""The model of a task: from a checkpoint to train on, and from a fine-tuned directory to use."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson
import pydantic
import torch

from finetune.adapters.directory import attach_to, is_adapter, open_adapter
from finetune.config import FinetuneConfig, class_names
from finetune.tasks import task_of
from finetune.tasks.base import Task
from finetune.tasks.config import Kind, TaskKeys
from finetune.tokenizer import TextTokenizer
from model import load_pretrained
from model.heads import Model
from model.hf import CheckpointError, read_config
from model.init import initialise
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.seed import seed_initialisation

TASK_FILE = "task.json"  # beside config.json: what the model was fine-tuned for
_HEAD = "score"  # the submodule whose rows are the classes


class Loaded(NamedTuple):
    """A model to train."""

    net: Model
    labels: list[str]  # in the order of the head's outputs
    notes: list[str]  # where its parts come from


class Opened(NamedTuple):
    """A fine-tuned model to use."""

    net: Model
    task: Task
    labels: list[str]
    tokenizer: TextTokenizer


def load_model(
    source: Path, task: Task, labels: Sequence[str], config: FinetuneConfig, *, is_resumed: bool
) -> Loaded:
    """Load a checkpoint with a head for these labels; its own where it has the same ones.

    Raises UserError for a directory that can't be read, or a resumed run of other classes.
    """
    seed_initialisation(config.run.seed)
    try:
        stored = class_names(read_config(source))
        is_same = not labels or sorted(stored.values()) == sorted(labels)
        names = [stored[i] for i in range(len(labels))] if is_same else list(labels)
        settings = task.head_settings(names)
        if config.robust.dropout is not None:
            settings["dropout"] = config.robust.dropout
        head = task.head_of(read_config(source))
        if is_resumed and is_adapter(source):
            net = open_adapter(source, head)
        else:
            net = load_pretrained(source, head=head, **settings).float()
    except CheckpointError as error:
        told = str(error)
        if task.is_of_vocabulary and "missing" in told:
            told += (
                f"; task.kind: {task.kind} goes on with a language model's head, which classifiers "
                "and bare encoders lack: take the checkpoint as it was pretrained"
            )
        raise UserError(told, status=EXIT_BAD_INPUT) from error
    shared: list[str] = []
    if not is_same:
        # A head for other classes, though of the same size, knows nothing of these.
        initialise(net.get_submodule(_HEAD))
        shared = [] if is_resumed else _keep_shared(net, names, source, stored)
    is_new = not is_same or bool(net.newly_initialised)
    if is_resumed:
        if is_new:
            raise UserError(
                f"{source}: was trained on other classes than {config.data.train} has now; "
                "restore the data, or choose another run.dir",
                status=EXIT_BAD_INPUT,
            )
        return Loaded(net, names, [])
    same = ", which has the same classes" if labels else ""
    kind = "drawn anew" if is_new else f"taken from the checkpoint{same}"
    but = f", but for what it knew of {', '.join(shared)}" if shared else ""
    notes = [f"model {source}; its head is {kind}{but}"]
    if config.adapter.kind != "none":
        notes.append(attach_to(net, config.adapter, source))
    return Loaded(net, names, notes)


def _keep_shared(
    net: Model, names: Sequence[str], source: Path, stored: Mapping[int, str]
) -> list[str]:
    """Take over what a checkpoint's head has learned of the classes that it shares with this one.

    Returns their names. Only where the whole head is of the same kind.
    """
    places = {name: number for number, name in stored.items() if name in set(names)}
    if not places or net.head not in ("sequence", "token") or is_adapter(source):
        return []
    try:
        before = load_pretrained(source, head=net.head)
    except CheckpointError:
        return []
    if before.newly_initialised:
        return []
    new, old = net.get_submodule(_HEAD), before.get_submodule(_HEAD)
    with torch.no_grad():
        for row, name in enumerate(names):
            if name in places:
                for mine, theirs in zip(new.parameters(), old.parameters(), strict=True):
                    mine[row] = theirs[places[name]].float()
    return [name for name in names if name in places]


def open_model(directory: Path, *, quantized: bool = True) -> Opened:
    """Open a fine-tuned model directory.

    quantized: False opens an adapter on whole weights, also where it was trained on quantised ones.
    Without a task.json it is taken for a classifier, as released ones are. Raises UserError.
    """
    keys, labels = _read_task(directory)
    task = task_of(keys)
    try:
        head = task.head_of(read_config(directory))
        if is_adapter(directory):
            net = open_adapter(directory, head, quantized=quantized)
        else:
            net = load_pretrained(directory, head=head)
    except CheckpointError as error:
        raise UserError(str(error), status=EXIT_BAD_INPUT) from error
    if net.newly_initialised:
        raise UserError(
            f"{directory}: has no head for task.kind: {keys.kind}; a fine-tuned model is needed",
            status=EXIT_BAD_INPUT,
        )
    if labels is None:
        by_number = class_names(net.config)
        labels = [by_number[i] for i in range(len(by_number))]
    return Opened(net, task, labels, TextTokenizer(directory, net.config))


def write_task(directory: Path, task: Task, labels: Sequence[str]) -> None:
    """Write beside a model what it was fine-tuned for."""
    content = {"task": task.keys.model_dump(mode="json"), "labels": list(labels)}
    (directory / TASK_FILE).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


# What a released classifier predicts, as its config.json says → the task that reads it.
_KINDS: dict[str, Kind] = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


def _released(directory: Path) -> tuple[TaskKeys, list[str] | None]:
    """The task of a model without a task.json, and its classes: None where config.json has them."""
    try:
        shape = read_config(directory)
    except CheckpointError as error:
        raise UserError(str(error), status=EXIT_BAD_INPUT) from error
    kind = _KINDS[shape.predicts]
    if kind == "regression" and shape.num_labels != 1:
        raise UserError(
            f"{directory}: predicts {shape.num_labels} numbers of each text; a regression of one "
            "is what is read here",
            status=EXIT_BAD_INPUT,
        )
    return TaskKeys(kind=kind), [] if kind == "regression" else None


def _read_task(directory: Path) -> tuple[TaskKeys, list[str] | None]:
    path = directory / TASK_FILE
    try:
        content = orjson.loads(path.read_bytes())
        keys = TaskKeys.model_validate(content["task"])
        labels = [str(label) for label in content["labels"]]
    except FileNotFoundError:
        return _released(directory)
    except (OSError, ValueError, KeyError, TypeError, pydantic.ValidationError) as error:
        raise UserError(f"{path}: cannot be read: {error}", status=EXIT_BAD_INPUT) from error
    return keys, labels
