"""Saving and loading a run: the checkpoint format of `runtime`, written by the main rank alone.

Every rank holds the same weights and moments, so one of them writes all. Same protocol as
`runtime.checkpoint.writer` (whose part is to gather what DeepSpeed spreads over the ranks).
"""

import shutil
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import save_file

from finetune.tokenizer import TextTokenizer
from model import save_pretrained
from model.heads import Model
from runtime.checkpoint.commit import begin, commit, files_in, seal
from runtime.checkpoint.format import SCHEMA, TRAINING, fsync_path, step_dir, temporary_dir
from runtime.checkpoint.reader import TrainingState
from runtime.optim import state_keys

_SCORE = "score.json"


def write_model(net: Model, directory: Path, tokenizer: TextTokenizer) -> None:
    """Write a Hugging Face directory that classifies in transformers as it does here."""
    save_pretrained(net, directory, tokenizer_dir=tokenizer.directory)
    tokenizer.write_settings(directory)


def save(
    root: Path,
    step: int,
    net: Model,
    optimizer: torch.optim.Optimizer,
    tokenizer: TextTokenizer,
    state: dict[str, Any],
) -> None:
    """Commit the checkpoint of a step: files, then the manifest, then one rename. Main rank."""
    temporary = temporary_dir(root, step)
    begin(temporary)
    write_model(net, temporary, tokenizer)
    tensors, steps = _optimizer_tensors(net, optimizer)
    save_file(tensors, temporary / TRAINING / "optimizer_00000.safetensors")
    full = {"schema": SCHEMA, "optimizer_steps": steps, **state}
    text = orjson.dumps(full, option=orjson.OPT_INDENT_2)
    (temporary / TRAINING / "state.json").write_bytes(text)
    commit(temporary, step_dir(root, step), step, seal(temporary, files_in(temporary)))


def _optimizer_tensors(
    net: Model, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], int]:
    """The optimizer's moments as flat tensors named `parameter|moment|0`, and its step count."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    tensors, steps = {}, 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for moment in state_keys(group):
                if moment in state:
                    flat = state[moment].detach().to("cpu", copy=True).flatten()
                    tensors[f"{names[id(parameter)]}|{moment}|0"] = flat
            steps = int(state.get("step", steps))
    return tensors, steps


def load_optimizer(net: Model, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """Give the optimizer the moments and the step count of a checkpoint."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    steps = float(state.values["optimizer_steps"])
    content = optimizer.state_dict()
    if steps:
        grouped = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        content["state"] = {
            number: {
                "step": torch.tensor(steps),
                **{
                    moment: state.read(names[id(p)], moment, 0, p.numel()).view_as(p)
                    for moment in state_keys(group)
                },
            }
            for number, (p, group) in enumerate(grouped)
        }
    optimizer.load_state_dict(content)


# --- the best model --------------------------------------------------------------------------


def publish_best(
    best: Path, net: Model, tokenizer: TextTokenizer, step: int, metric: str, score: float
) -> None:
    """Replace the best model by this one. A crash leaves one of the two (see `recover_best`)."""
    fresh, old = best.with_name(f".{best.name}.new"), best.with_name(f".{best.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    write_model(net, fresh, tokenizer)
    content = {"step": step, "metric": metric, "dev_score": score}
    (fresh / _SCORE).write_bytes(orjson.dumps(content))
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
