"""Checkpoints that DeepSpeed wrote: fp32 master weights and AdamW's moments, whole, by name.

ZeRO 1–2 lay the parameters of a group end to end and cut the row into one part per rank; ZeRO 3
cuts each parameter, and lays a rank's cuts end to end (deepspeed/utils/zero_to_fp32.py describes
both from the reading side). Stage 0 keeps torch's own optimizer state; a universal checkpoint (the
output of ds_to_universal) one file per parameter and key. Every tensor is a view of a mapped file
until it is asked for.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runtime.deepspeed_pickles import Node, read, read_dict, refusal
from runtime.errors import EXIT_BAD_INPUT, UserError

MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")
_PLAIN_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}$")
_OPTIM = re.compile(r"^(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt$")
_MODEL = re.compile(r"^(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt$")

Shapes = dict[str, tuple[int, ...]]
Pieces = dict[
    str, list[Tensor]
]  # key → 1-D views, in order; a key that was never stepped is absent


class DeepSpeedCheckpoint(NamedTuple):
    """What a checkpoint of DeepSpeed holds of a training run."""

    directory: Path
    step: int  # optimizer steps that DeepSpeed counted, skipped ones included
    optimizer_steps: int  # of AdamW's bias correction
    shapes: Shapes  # of each parameter; a shared one under one name
    pieces: dict[str, Pieces]
    frozen: tuple[str, ...]  # parameters without moments, because they were not trained
    settings: dict[str, Any]  # betas, eps, weight_decay of the optimizer; absent where it has none

    def read(self, name: str, key: str) -> Tensor:
        """One whole tensor, fp32; zeros for moments that no step has filled."""
        shape = self.shapes[name]
        pieces = self.pieces[name].get(key)
        if not pieces:
            return torch.zeros(shape)
        flat = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return flat[: math.prod(shape)].float().view(shape)


def open_checkpoint(root: Path, tag: str | None = None) -> DeepSpeedCheckpoint:
    """Open the checkpoint `tag` of a directory that engine.save_checkpoint was given.

    tag: default the one that `latest` names; the directory may also be that of the tag itself.
    Raises UserError, in one line, for what cannot be read or is of another kind of run.
    """
    directory = _directory(root, tag)
    names = sorted(path.name for path in directory.iterdir())
    _refuse_other_runs(directory, names)
    states = [name for name in names if _MODEL.match(name)]
    if not states:
        raise refusal(directory, "has no …_model_states.pt, so it is no checkpoint of DeepSpeed")
    models = [read_dict(directory / name) for name in _in_order(directory, states, _MODEL)]
    model = Node(models[0], directory / states[0])
    if (directory / "zero").is_dir():
        return _universal(directory, model)
    optims = _in_order(directory, [name for name in names if _OPTIM.match(name)], _OPTIM)
    if not optims:
        return _unpartitioned(directory, model)
    nodes = [Node(read_dict(directory / n), directory / n)["optimizer_state_dict"] for n in optims]
    return _partitioned(directory, [Node(m, directory / states[0]) for m in models], nodes)


def _directory(root: Path, tag: str | None) -> Path:
    if not root.is_dir():
        raise UserError(f"{root}: no such directory", status=EXIT_BAD_INPUT)
    if tag is None:
        if any(_MODEL.match(path.name) for path in root.iterdir()):
            return root
        hint = next((p for n in ("latest", "latest_universal") if (p := root / n).is_file()), None)
        if hint is None:
            raise refusal(root, "has no file `latest`; name the checkpoint with --tag")
        with hint.open("rb") as file:
            tag = file.read(256).decode("utf-8", "replace").strip()
    if not _PLAIN_NAME.fullmatch(tag) or not (root / tag).is_dir():
        raise refusal(root, f"tag {tag!r}: expected the name of a directory in it")
    return root / tag


def _refuse_other_runs(directory: Path, names: list[str]) -> None:
    parallel = [m[2] for name in names if (m := _OPTIM.match(name) or _MODEL.match(name))]
    if set(parallel) - {"00"}:
        raise refusal(directory, "is of a tensor-parallel run; only data-parallel ones are read")
    if any(name.startswith("layer_") for name in names):
        raise refusal(directory, "is of a pipeline or expert run; only data-parallel ones are read")


def _in_order(directory: Path, names: list[str], pattern: re.Pattern[str]) -> list[str]:
    """Files by rank; refuses missing and double ones."""
    ranks = {int(m[1] or 0): name for name in names if (m := pattern.match(name))}
    if sorted(ranks) != list(range(len(names))):
        found = ", ".join(names[:4])
        raise refusal(directory, f"files of some ranks are missing or double ({found} …)")
    return [ranks[rank] for rank in sorted(ranks)]


def _partitioned(directory: Path, models: list[Node], optims: list[Node]) -> DeepSpeedCheckpoint:
    """ZeRO 1, 2 and 3: the states of all ranks."""
    is_stage_3 = optims[0].get("fp32_flat_groups") is not None
    ranks = max(part.count() for part in optims[0]["partition_count"].list())
    if ranks != len(optims) or (is_stage_3 and len(models) != ranks):
        raise refusal(directory, f"is of {ranks} ranks, but has the files of {len(optims)}")
    masters = "fp32_flat_groups" if is_stage_3 else "single_partition_of_fp32_groups"
    inner = "optimizer_state_dict" if is_stage_3 else "base_optimizer_state"
    rows = [_rank_rows(optim[masters], optim[inner]) for optim in optims]
    if len({len(row) for row in rows}) != 1:
        raise refusal(directory, "its ranks have different numbers of parameter groups")
    groups = _shapes(models[0])
    shapes = {name: shape for group in groups for name, shape in group.items()}
    if is_stage_3:
        pieces = dict(_cut_each(directory, shapes, rows))
    else:
        paddings = optims[0].get("param_alignment_paddings")
        pieces = {}
        for index, found in enumerate(groups):
            padding = [0] * len(found)
            if paddings is not None:
                padding = [part.count() for part in paddings[index].list()]
            if len(padding) != len(found) or index >= len(rows[0]):
                raise refusal(directory, f"group {index} is not as its shapes say")
            parts = [row[index] for row in rows]
            pieces |= _cut_row(directory, found, padding, parts)
    frozen = dict(_frozen(models, is_stage_3=is_stage_3))
    shapes |= {name: shape for name, (shape, _) in frozen.items()}
    pieces |= {name: {MASTER: parts} for name, (_, parts) in frozen.items()}
    optimizer = optims[0][inner]
    settings = optimizer["param_groups"].list()
    return _finished(models[0], settings, _counters(optimizer), shapes, pieces)


def _shapes(model: Node) -> list[Shapes]:
    """The shape of each trained parameter, group by group, in the order of the rows."""
    groups = model["param_shapes"].list()
    return [{str(name): node.shape() for name, node in group.items()} for group in groups]


def _rank_rows(masters: Node, optimizer: Node) -> list[dict[str, Tensor]]:
    """One rank's rows: of each group (ZeRO 3: sub-group) the master weights and both moments."""
    if isinstance(optimizer.value, list):
        raise refusal(optimizer.where, "is of elastic_checkpoint; convert it with ds_to_universal")
    states, rows = optimizer["state"], []
    for index, master in enumerate(masters.list()):
        row = {MASTER: master.flat()}
        state = states.get(index)
        if state is not None:
            row |= {key: state[key].flat() for key in MOMENTS}
            if any(row[key].numel() < row[MASTER].numel() for key in MOMENTS):
                raise refusal(state.where, "its moments are shorter than its weights")
        rows.append(row)
    return rows


def _cut_row(
    directory: Path,
    shapes: Shapes,
    paddings: list[int],
    parts: list[dict[str, Tensor]],
) -> dict[str, Pieces]:
    """ZeRO 1–2: the parameters of one group lie end to end through the parts of all ranks."""
    numel = [part[MASTER].numel() for part in parts]
    starts = [sum(numel[:rank]) for rank in range(len(parts))]
    found, offset = {}, 0
    for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
        end = offset + math.prod(shape)
        pieces: Pieces = {}
        for part, start, length in zip(parts, starts, numel, strict=True):
            low, high = max(offset, start) - start, min(end, start + length) - start
            for key in part if low < high else ():
                pieces.setdefault(key, []).append(part[key][low:high])
        found[name] = pieces
        offset = end + padding
    total, unit = sum(numel), 2 * len(parts)
    if -(-offset // unit) != -(-total // unit):  # DeepSpeed pads a row to such a multiple
        raise refusal(directory, f"a group holds {total} values, its shapes say {offset}")
    return found


def _cut_each(
    directory: Path, shapes: Shapes, rows: list[list[dict[str, Tensor]]]
) -> Iterator[tuple[str, Pieces]]:
    """ZeRO 3: every rank has an equal part of each parameter, the last padded."""
    group, offset = 0, 0
    for name, shape in shapes.items():
        part = -(-math.prod(shape) // len(rows))
        # A parameter lies in one sub-group whole.
        if group < len(rows[0]) and offset == rows[0][group][MASTER].numel():
            group, offset = group + 1, 0
        held = [row[group] if group < len(row) else {} for row in rows]
        if any(MASTER not in h or offset + part > h[MASTER].numel() for h in held):
            raise refusal(directory, f"{name} has more values by its shape than are stored")
        keys = held[0].keys()
        yield (
            name,
            {key: [h[key][offset : offset + part] for h in held if key in h] for key in keys},
        )
        offset += part
    stored = sum(row[MASTER].numel() for row in rows[0])
    named = sum(-(-math.prod(shape) // len(rows)) for shape in shapes.values())
    if stored != named:
        raise refusal(directory, f"a rank holds {stored} values, its shapes say {named}")


def _frozen(
    models: list[Node], *, is_stage_3: bool
) -> Iterator[tuple[str, tuple[tuple[int, ...], list[Tensor]]]]:
    for name, node in models[0].parts("frozen_param_shapes"):
        holders = models if is_stage_3 else models[:1]
        yield name, (node.shape(), [m["frozen_param_fragments"][name].flat() for m in holders])


def _unpartitioned(directory: Path, model: Node) -> DeepSpeedCheckpoint:
    """Stage 0: the module's own tensors and torch's state, numbered in the optimizer's order."""
    optimizer, masters = model["optimizer"], None
    if optimizer.get("optimizer_state_dict") is not None:  # of 16-bit runs
        masters = [part for group in optimizer["fp32_groups"].list() for part in group.list()]
        optimizer = optimizer["optimizer_state_dict"]
    buffers, shapes, seen = set(model["buffer_names"].value or ()), {}, set()
    for name, node in model["module"].items():
        place = (node.flat().data_ptr(), node.value.numel())
        if name not in buffers and place not in seen:  # a tied one is stored under both names
            seen.add(place)
            shapes[name] = tuple(node.value.shape)
    numbers = [
        i.count() for group in optimizer["param_groups"].list() for i in group["params"].list()
    ]
    states = optimizer["state"]
    pieces = {}
    for number, name in zip(numbers, _optimizer_order(directory, optimizer, shapes), strict=True):
        source = model["module"][name] if masters is None else Node(masters, directory)[number]
        source = source if isinstance(source.value, Tensor) else source.value
        rows = {MASTER: source.flat()}
        state = states.get(number)
        rows |= {key: state[key].flat() for key in MOMENTS} if state is not None else {}
        pieces[name] = {key: [row] for key, row in rows.items()}
    groups = optimizer["param_groups"].list()
    return _finished(model, groups, _counters(optimizer), shapes, pieces)


def _optimizer_order(directory: Path, optimizer: Node, shapes: Shapes) -> list[str]:
    """The names in the order in which torch numbers them: that of the module, or matrices first.

    Stage 0 stores no names; every shape is checked, and other groupings are refused.
    """
    groups = [len(group["params"].list()) for group in optimizer["param_groups"].list()]
    matrices = [name for name, shape in shapes.items() if len(shape) >= 2]
    rest = [name for name in shapes if len(shapes[name]) < 2]
    if len(groups) == 1 and groups[0] == len(shapes):
        return list(shapes)
    if groups == [len(matrices), len(rest)]:
        return [*matrices, *rest]
    raise refusal(
        directory,
        f"stage 0 with {len(shapes)} parameters in groups of {groups} does not say which is which; "
        "save it once with ZeRO stage 1",
    )


def _universal(directory: Path, model: Node) -> DeepSpeedCheckpoint:
    """The output of ds_to_universal: zero/PARAMETER/{fp32,exp_avg,exp_avg_sq}.pt."""
    shapes = {name: shape for group in _shapes(model) for name, shape in group.items()}
    frozen = {str(name): node.shape() for name, node in model.parts("frozen_param_shapes")}
    pieces: dict[str, Pieces] = {}
    for name in (*shapes, *frozen):
        # Names with a path in them could point outside the directory.
        if not _PLAIN_NAME.fullmatch(name):
            raise refusal(directory, f"names a parameter {name!r}")
        files = {MASTER: directory / "zero" / name / "fp32.pt"}
        files |= {key: directory / "zero" / name / f"{key}.pt" for key in MOMENTS}
        found = {key: Node(read(path), path) for key, path in files.items() if path.is_file()}
        pieces[name] = {key: [_param(node).flat()] for key, node in found.items()}
    path = directory / "zero" / "optimizer_state.pt"
    state = Node(read_dict(path), path)
    inner = state.get("optimizer_state_dict")  # of stage 3 alone
    counters = [] if inner is None else _counters(inner)
    paths = [directory / "zero" / name / "step.pt" for name in shapes]
    counters += [Node(read(path), path) for path in paths if path.is_file()]
    groups = state["param_groups"].list()
    return _finished(model, groups, counters, {**shapes, **frozen}, pieces)


def _param(node: Node) -> Node:
    """Stages 1 and 2 come as a dict with a tensor in it, stage 3 as the tensor."""
    return node["param"] if isinstance(node.value, dict) else node


def _counters(optimizer: Node) -> list[Node]:
    """Every step count of an optimizer's state: of each tensor, or of each group."""
    holders = [*optimizer["state"].items(), *optimizer["param_groups"].items()]
    return [count for _, holder in holders if (count := holder.get("step")) is not None]


def _finished(
    model: Node, groups: list[Node], counters: list[Node], shapes: Shapes, pieces: dict[str, Pieces]
) -> DeepSpeedCheckpoint:
    where = model.where
    for name, shape in shapes.items():
        if MASTER not in pieces.get(name, {}):
            raise refusal(where, f"has no weights of {name}")
        for key, parts in pieces[name].items():
            if sum(part.numel() for part in parts) < math.prod(shape):
                raise refusal(where, f"{key} of {name} has fewer values than its shape says")
    steps = {counter.count() for counter in counters}
    if len(steps) > 1:
        raise refusal(where, f"its parameters have taken different numbers of steps: {steps}")
    settings = {
        name: value
        for name in ("betas", "eps", "weight_decay")
        if (value := [found.value for group in groups if (found := group.get(name)) is not None])
    }
    frozen = tuple(str(name) for name, _ in model.parts("frozen_param_shapes"))
    step = model["global_steps"].count()
    return DeepSpeedCheckpoint(
        Path(where).parent, step, steps.pop() if steps else 0, shapes, pieces, frozen, settings
    )
