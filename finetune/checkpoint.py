"""Saving and loading a run, in the checkpoint format of `runtime`.

Every rank holds the same weights and moments, so the main one answers for all of them.
"""

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import torch

from finetune.adapters.attach import attached
from finetune.adapters.directory import write_adapter
from finetune.models import write_task
from finetune.tasks.base import Task
from finetune.tokenizer import TextTokenizer
from model.heads import Model
from model.hf.directory import ModelFiles
from model.hf.shards import Create, on_disk
from runtime.checkpoint.format import fsync_path
from runtime.checkpoint.reader import TrainingState
from runtime.dist import Ranks
from runtime.optim import state_keys
from runtime.zero_layout import MASTER, Slice, read_moment

_SCORE = "score.json"


class Purpose(NamedTuple):
    """What a model is fine-tuned for."""

    task: Task
    labels: Sequence[str]


def write_model(
    net: Model,
    parameters: Mapping[str, torch.Tensor],
    directory: Path,
    tokenizer: TextTokenizer,
    purpose: Purpose,
    create: Create = on_disk,
) -> None:
    """Write a Hugging Face directory that says in transformers what it says here.

    Of a model with an adapter: a PEFT directory.
    """
    if attached(net) is not None:
        write_adapter(net, parameters, directory, tokenizer.directory, create)
    else:
        dtype = next(iter(parameters.values())).dtype
        files = ModelFiles(net.config, net.head, dtype, tokenizer_dir=tokenizer.directory)
        files.write(directory, parameters, create)
    tokenizer.write_settings(directory, purpose.task.tokenizer_settings(tokenizer))
    write_task(directory, *purpose)


class Saved(NamedTuple):
    """What a checkpoint holds of a run, all of which the main rank has and writes.

    Both what is trained and how its model is written: see `runtime.checkpoint.saver.Saver.save`.
    """

    net: Model
    optimizer: torch.optim.Optimizer
    tokenizer: TextTokenizer
    purpose: Purpose
    ranks: Ranks

    def full_parameters(self, wanted: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Those parameters by name."""
        for name, parameter in self.net.named_parameters():
            if name in wanted:
                yield name, parameter.detach()

    def optimizer_slices(self) -> Iterator[Slice]:
        """The moments, each as one slice."""
        names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        for group in self.optimizer.param_groups if self.ranks.is_main else ():
            for parameter in group["params"]:
                state = self.optimizer.state.get(parameter, {})
                for key in state_keys(group):
                    if key in state:
                        yield Slice(names[id(parameter)], key, 0, state[key].detach().flatten())

    def optimizer_steps(self) -> int:
        """How many steps the optimizer has counted."""
        return max((int(s.get("step", 0)) for s in self.optimizer.state.values()), default=0)

    def parameter_shapes(self) -> dict[str, list[int]]:
        """The shape of each parameter by name."""
        return {name: list(parameter.shape) for name, parameter in self.net.named_parameters()}

    def wanted(self) -> Collection[str]:
        """The parameters that this rank writes."""
        if not self.ranks.is_main:
            return []
        adapter = attached(self.net)
        return [n for n, _ in self.net.named_parameters()] if adapter is None else adapter.written

    def write(
        self, directory: Path, parameters: Mapping[str, torch.Tensor], create: Create
    ) -> None:
        """Write a Hugging Face directory that says in transformers what it says here."""
        if self.ranks.is_main:
            write_model(self.net, parameters, directory, self.tokenizer, self.purpose, create)


def load_optimizer(net: Model, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """Give the optimizer the moments and the step count of a checkpoint.

    Where the run was under ZeRO until then, its fp32 masters become the weights.
    """
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    steps = float(state.values["optimizer_steps"])
    content = optimizer.state_dict()
    if steps:
        grouped = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        content["state"] = {
            number: {
                "step": torch.tensor(steps),
                **{
                    moment: read_moment(state.read, names[id(p)], moment, 0, p.numel())
                    .view_as(p)
                    .clone()
                    for moment in state_keys(group)
                },
            }
            for number, (p, group) in enumerate(grouped)
        }
    optimizer.load_state_dict(content)
    if state.holds(MASTER):
        with torch.no_grad():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.copy_(state.read(names[id(p)], MASTER, 0, p.numel()).view_as(p))


# --- the best model --------------------------------------------------------------------------


def publish_best(
    best: Path,
    net: Model,
    parameters: Mapping[str, torch.Tensor],
    tokenizer: TextTokenizer,
    purpose: Purpose,
    score: Mapping[str, Any],
) -> None:
    """Replace the best model by this one. A crash leaves one of the two (see `recover_best`)."""
    fresh, old = best.with_name(f".{best.name}.new"), best.with_name(f".{best.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    write_model(net, parameters, fresh, tokenizer, purpose)
    (fresh / _SCORE).write_bytes(orjson.dumps(score))
    for path in (*fresh.iterdir(), fresh):
        fsync_path(path)
    shutil.rmtree(old, ignore_errors=True)
    if best.exists():
        best.rename(old)
    fresh.rename(best)
    fsync_path(best.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_best(best: Path) -> None:
    """Bring back the best model where a crash came between the two renames."""
    old = best.with_name(f".{best.name}.old")
    if old.exists() and not best.exists():
        old.rename(best)


def best_score(best: Path) -> dict[str, Any] | None:
    """Step, metric and dev score of the best model; None where there is none yet."""
    try:
        content: dict[str, Any] = orjson.loads((best / _SCORE).read_bytes())
    except FileNotFoundError:
        return None
    return content
