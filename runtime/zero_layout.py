"""Where ZeRO keeps each parameter's master weights and moments, in terms of names and offsets.

ZeRO 1–2 lay the parameters of a group end to end and cut the row into equal parts per rank;
ZeRO 3 cuts every parameter. Both are described here as slices of the flattened parameter, which
is what makes a checkpoint independent of stage and world size.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import torch

from runtime import dist, optim, zero_swap
from runtime.dist import Ranks
from runtime.errors import EXIT_BAD_INPUT, EXIT_FAILED, UserError
from runtime.lion import Lion
from runtime.muon import Matrices, Muon

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
    owner: int  # which of the optimizer's tensors it lies in: the same on all ranks
    flat_start: int
    group: dict[str, Any]


class _Owner(NamedTuple):
    """A tensor of the optimizer's: a parameter at stage 0, a flat one at the others."""

    tensor: torch.Tensor  # empty while it is on disk
    group: dict[str, Any]

    @property
    def flat(self) -> torch.Tensor:
        return self.tensor.detach().view(-1)


def _places(engine: Any, stage: int, ranks: Ranks) -> Iterator[_Place]:
    owners = _owners(engine, stage)
    index_of = {id(o.tensor): index for index, o in enumerate(owners)} if stage == 0 else {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if stage == 0:
            # Every rank holds everything; each answers for an equal share of it.
            share = -(-parameter.numel() // ranks.world_size)
            start = min(ranks.rank * share, parameter.numel())
            numel = min(share, parameter.numel() - start)
            index, flat_start = index_of[id(parameter)], start
        elif stage == 3:
            index, flat_start, _ = engine.optimizer.grad_position[
                engine.optimizer.get_param_id(parameter)
            ]
            part = parameter.partition_numel()
            start = ranks.rank * part
            numel = min(part, parameter.ds_numel - start)  # the last part is padded
        elif parameter._hp_mapping is not None:
            mapping = parameter._hp_mapping
            lp, hp = mapping.lp_fragment_address, mapping.hp_fragment_address
            index, flat_start = mapping.param_group_index, hp.start
            start, numel = lp.start, lp.numel
        else:
            continue
        if numel > 0:
            yield _Place(name, start, numel, index, flat_start, owners[index].group)


def _base_optimizer(engine: Any) -> torch.optim.Optimizer:
    base: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return base


def _owners(engine: Any, stage: int) -> list[_Owner]:
    """The tensors under which the optimizer keeps its state, in the same order on all ranks."""
    groups = _base_optimizer(engine).param_groups
    if stage == 0:
        return [_Owner(p, group) for group in groups for p in group["params"]]
    if stage == 3:
        flats = engine.optimizer.fp32_partitioned_groups_flat
        group_of = engine.optimizer.sub_group_to_group_id
        return [_Owner(flat, groups[group_of[index]]) for index, flat in enumerate(flats)]
    flats = engine.optimizer.single_partition_of_fp32_groups
    return [_Owner(flat, group) for flat, group in zip(flats, groups, strict=True)]


def attach(engine: Any, stage: int, ranks: Ranks) -> None:
    """Tell Muon, or Lion, what of theirs lies where in ZeRO's flat tensors. Collective."""
    base = _base_optimizer(engine)
    if stage == 0:
        return
    if isinstance(base, Muon):
        _attach_muon(base, engine, stage, ranks)
    elif isinstance(base, Lion):
        owners = _owners(engine, stage)
        stretches: dict[torch.Tensor, list[tuple[int, int]]] = {o.tensor: [] for o in owners}
        for place in _places(engine, stage, ranks):
            stretches[owners[place.owner].tensor].append((place.flat_start, place.numel))
        base.attach(stretches)


def _attach_muon(base: Muon, engine: Any, stage: int, ranks: Ranks) -> None:
    mine = {
        place.parameter: (place.owner, place.start, place.start + place.numel, place.flat_start)
        for place in _places(engine, stage, ranks)
        if "splits" in place.group
    }
    held = [json.loads(text) for text in dist.gather_text(json.dumps(mine))]
    placed = [(owner.tensor, list[Matrices]()) for owner in _owners(engine, stage)]
    for name, parameter in engine.module.named_parameters():
        found = [places.get(name) for places in held]
        index = next((place[0] for place in found if place), None)
        if index is not None:
            rows = base.rows_of(parameter)
            numel = getattr(parameter, "ds_numel", parameter.numel())
            stretches = tuple((place[1], place[2]) if place else (0, 0) for place in found)
            flat_start = found[ranks.rank][3] if found[ranks.rank] else 0
            matrices = Matrices(rows, numel // sum(rows), stretches, flat_start)
            placed[index][1].append(matrices)
    dtype = next(engine.module.parameters()).dtype
    base.attach(
        placed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
        # fp16 has not the range: gradients are not scaled any more.
        dtype=dtype if dtype == torch.bfloat16 else torch.float32,
    )


def parts(engine: Any, stage: int, ranks: Ranks) -> Iterator[Part]:
    """Every part of a parameter that this rank answers for; all ranks together: each once.

    Each is valid until the next is asked for: what ZeRO keeps on disk is there for so long.
    """
    owners, states = _owners(engine, stage), _base_optimizer(engine).state
    for index, places in _by_owner(engine, stage, ranks):
        owner = owners[index]
        with zero_swap.present(engine, index):
            held = states.get(owner.tensor, {})
            for name, start, numel, _, flat_start, group in places:
                state = {
                    key: held[key].view(-1).narrow(0, flat_start, numel)
                    for key in optim.state_keys(group)
                    if key in held
                }
                yield Part(name, start, owner.flat.narrow(0, flat_start, numel), state, group)


def _by_owner(engine: Any, stage: int, ranks: Ranks) -> Iterator[tuple[int, Iterator[_Place]]]:
    """The places in each of the optimizer's tensors, so that each is fetched once."""
    places = sorted(_places(engine, stage, ranks), key=lambda place: place.owner)
    return groupby(places, key=lambda place: place.owner)


def slices(engine: Any, stage: int, ranks: Ranks) -> Iterator[Slice]:
    """Every slice of master weights and moments that this rank holds, valid as `parts` are."""
    for part in parts(engine, stage, ranks):
        yield Slice(part.parameter, MASTER, part.start, part.master)
        for key, tensor in part.state.items():
            yield Slice(part.parameter, key, part.start, tensor)


def skip_step(engine: Any, is_skipped: bool) -> None:
    """Let the optimizer's next step change nothing, or be one as always.

    `found_inf` is the name under which torch's optimizers take this from a gradient scaler.
    """
    optimizer: Any = _base_optimizer(engine)
    optimizer.found_inf = torch.tensor(float(is_skipped))


def measure_step(engine: Any, is_measured: bool) -> None:
    """Say whether `squared_norms` will be asked for the next step: AdamW's alone can be traced."""
    optimizer: Any = _base_optimizer(engine)
    optimizer.is_measured = is_measured


def optimizer_steps(engine: Any) -> int:
    """The optimizer's own step count (0 before the first step)."""
    for state in _base_optimizer(engine).state.values():
        return int(state["step"])
    return 0


def squared_norms(engine: Any, stage: int, ranks: Ranks) -> list[float]:
    """This rank's share of ‖Δw‖² and ‖w₀‖² of the last step, w₀ the master weights before it."""
    steps, base = optimizer_steps(engine), _base_optimizer(engine)
    squares = [
        optim.squared_norms(part.master, part.state, part.group, steps)
        for part in parts(engine, stage, ranks)
        if optim.is_adamw(part.group)
    ]
    if isinstance(base, Muon | Lion) and (
        stage > 0 or ranks.is_main
    ):  # at stage 0 every rank has all
        squares += base.squares.values()
    # Added up before they are read: one wait for the GPU.
    return torch.stack(squares).sum(0).tolist() if squares else [0.0, 0.0]


def load(engine: Any, stage: int, ranks: Ranks, read: ReadSlice, steps: int) -> None:
    """Copy stored slices into this rank's master weights and moments, then refresh the module's.

    Collective. Raises UserError where the slices are those of another optimizer.
    """
    error, status = None, EXIT_FAILED
    with torch.no_grad():
        try:
            _load_slices(engine, stage, ranks, read, steps)
        except UserError as problem:
            error, status = str(problem), problem.status
        dist.raise_together(error, status)
        _refresh_module(engine, stage, ranks)


def _load_slices(engine: Any, stage: int, ranks: Ranks, read: ReadSlice, steps: int) -> None:
    base = _base_optimizer(engine)
    # At stage 0 every rank needs all of the state, not the share that it answers for.
    holder = replace(ranks, rank=0, world_size=1) if stage == 0 else ranks
    places = {index: list(found) for index, found in _by_owner(engine, stage, holder)}
    for index, owner in enumerate(_owners(engine, stage)):
        with zero_swap.present(engine, index, is_written=True):
            # Those too that hold nothing but padding here: their step counts must not lag behind.
            state = base.state.get(owner.tensor, {})
            if steps or state:
                for key in optim.state_keys(owner.group):
                    # DeepSpeed points at what is there already.
                    state[key] = (
                        state[key].zero_() if key in state else torch.zeros_like(owner.tensor)
                    )
                state["step"] = torch.tensor(float(steps), device=owner.tensor.device)
                base.state[owner.tensor] = state
            for name, start, numel, _, flat_start, group in places.get(index, ()):
                owner.flat.narrow(0, flat_start, numel).copy_(read(name, MASTER, start, numel))
                for key in optim.state_keys(group) if steps else ():
                    target = state[key].view(-1).narrow(0, flat_start, numel)
                    target.copy_(read_moment(read, name, key, start, numel))


def read_moment(read: ReadSlice, name: str, key: str, start: int, numel: int) -> torch.Tensor:
    """One slice of a moment. Raises UserError where another optimizer wrote the checkpoint."""
    try:
        return read(name, key, start, numel)
    except UserError as error:
        # Its weights were there.
        raise UserError(
            f"optim.name: the checkpoint has no {key} of {name}, so another optimizer wrote it; "
            "restore optim.name, or choose another run.dir",
            status=EXIT_BAD_INPUT,
        ) from error


def _refresh_module(engine: Any, stage: int, ranks: Ranks) -> None:
    """Round the master weights to the module's own parameters, as a step does at its end."""
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    elif stage == 3:
        engine.optimizer.checkpoint_event_prologue()  # lets go of what is whole between steps
        for index in range(len(_owners(engine, stage))):
            with zero_swap.present(engine, index):
                engine.optimizer._reassign_or_swap_out_partitioned_parameters(index)
        # hpZ's second copies are of the weights before. Small parameters, which DeepSpeed has whole
        # between steps, stay cut: those used outside of their own module, as the output matrix is,
        # it notes in its first pass as it finds them cut, and later it is too late.
        engine.optimizer.invalidate_secondary_tensor()
