"""Where ZeRO keeps each parameter's master weights and moments, in terms of names and offsets.

ZeRO 1–2 lay the parameters of a group end to end and cut the row into equal parts per rank;
ZeRO 3 cuts every parameter. Both are described here as slices of the flattened parameter, which
is what makes a checkpoint independent of stage and world size.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from runtime.dist import Ranks

MASTER = "master"  # the key of the fp32 weights; the moments have torch's own names

ReadSlice = Callable[[str, str, int, int], torch.Tensor]


class Slice(NamedTuple):
    """A stretch of one flattened fp32 tensor."""

    parameter: str
    key: str
    start: int  # in the flattened parameter
    tensor: torch.Tensor  # 1-D, a view of the engine's memory


class Part(NamedTuple):
    """A stretch of one parameter that this rank answers for: master weights and moments."""

    parameter: str
    start: int  # in the flattened parameter
    master: torch.Tensor  # 1-D fp32, a view of the engine's memory
    state: dict[str, torch.Tensor]  # by torch's names, each a view as long as master
    group: dict[str, Any]  # the optimizer's settings for it


class _Place(NamedTuple):
    parameter: str
    start: int  # in the flattened parameter
    numel: int
    flat: torch.Tensor  # the optimizer's own tensor
    flat_start: int
    group: dict[str, Any]


def _places(engine: Any, stage: int, ranks: Ranks) -> Iterator[_Place]:
    groups = _base_optimizer(engine).param_groups
    group_of = {id(p): group for group in groups for p in group["params"]} if stage == 0 else {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if stage == 0:
            # Every rank holds everything; each answers for an equal share of it.
            share = -(-parameter.numel() // ranks.world_size)
            start = min(ranks.rank * share, parameter.numel())
            numel = min(share, parameter.numel() - start)
            if numel:
                flat, group = parameter.data.view(-1), group_of[id(parameter)]
                yield _Place(name, start, numel, flat, start, group)
        elif stage == 3:
            index, flat_start, _ = engine.optimizer.grad_position[
                engine.optimizer.get_param_id(parameter)
            ]
            part = parameter.partition_numel()
            start = ranks.rank * part
            numel = min(part, parameter.ds_numel - start)  # the last part is padded
            if numel > 0:
                flat = engine.optimizer.fp32_partitioned_groups_flat[index]
                group = groups[engine.optimizer.sub_group_to_group_id[index]]
                yield _Place(name, start, numel, flat, flat_start, group)
        else:
            mapping = parameter._hp_mapping
            if mapping is not None:
                index = mapping.param_group_index
                flat = engine.optimizer.single_partition_of_fp32_groups[index]
                lp, hp = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield _Place(name, lp.start, lp.numel, flat, hp.start, groups[index])


def _base_optimizer(engine: Any) -> torch.optim.Optimizer:
    base: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return base


def _owner(engine: Any, stage: int, place: _Place) -> torch.Tensor:
    """The tensor under which the optimizer keeps the state of a place."""
    if stage == 0:
        parameter: torch.Tensor = engine.module.get_parameter(place.parameter)
        return parameter
    return place.flat


def parts(engine: Any, stage: int, ranks: Ranks) -> Iterator[Part]:
    """Every part of a parameter that this rank answers for; all ranks together: each once."""
    states = _base_optimizer(engine).state
    for place in _places(engine, stage, ranks):
        name, start, numel, flat, flat_start, group = place
        state = {
            key: value.view(-1).narrow(0, flat_start, numel)
            for key, value in states[_owner(engine, stage, place)].items()
            if torch.is_tensor(value) and value.numel() == flat.numel() and value.dim() > 0
        }
        yield Part(name, start, flat.narrow(0, flat_start, numel), state, group)


def slices(engine: Any, stage: int, ranks: Ranks) -> Iterator[Slice]:
    """Every slice of master weights and moments that this rank holds."""
    for part in parts(engine, stage, ranks):
        yield Slice(part.parameter, MASTER, part.start, part.master)
        for key, tensor in part.state.items():
            yield Slice(part.parameter, key, part.start, tensor)


def optimizer_steps(engine: Any) -> int:
    """The optimizer's own step count (0 before the first step)."""
    for state in _base_optimizer(engine).state.values():
        return int(state["step"])
    return 0


def load(engine: Any, stage: int, ranks: Ranks, read: ReadSlice, steps: int) -> None:
    """Copy stored slices into this rank's master weights and moments, then refresh the module's.

    Collective.
    """
    base = _base_optimizer(engine)
    with torch.no_grad():
        for place in _places(engine, stage, ranks):
            name, start, numel, flat, flat_start, _ = place
            if stage == 0:
                # State is replicated here: every rank needs all of it, not its share.
                flat = engine.module.get_parameter(name).data.view(-1)
                start, numel, flat_start = 0, flat.numel(), 0
            flat.narrow(0, flat_start, numel).copy_(read(name, MASTER, start, numel))
            state = base.state[_owner(engine, stage, place)]
            if "step" not in state:
                shape = _owner(engine, stage, place)
                state["exp_avg"] = torch.zeros_like(shape)
                state["exp_avg_sq"] = torch.zeros_like(shape)
            state["step"] = torch.tensor(float(steps), device=flat.device)
            for key in ("exp_avg", "exp_avg_sq"):
                target = state[key].view(-1).narrow(0, flat_start, numel)
                target.copy_(read(name, key, start, numel))
        _refresh_module(engine, stage, ranks)


def _refresh_module(engine: Any, stage: int, ranks: Ranks) -> None:
    """Round the master weights to the module's own parameters, as a step does at its end."""
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    elif stage == 3:
        engine.optimizer.checkpoint_event_prologue()  # lets go of what is whole between steps
        for place in _places(engine, stage, ranks):
            part = engine.module.get_parameter(place.parameter).ds_tensor
            part[: place.numel].copy_(place.flat.narrow(0, place.flat_start, place.numel))
        engine.optimizer.checkpoint_event_epilogue()
