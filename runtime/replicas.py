"""Do ranks still hold the same? Bit for bit, what they should hold in common is compared.

Memory and interconnects flip bits without a word (Llama 3, arXiv 2407.21783, table 5: 6 of 419
interruptions), and BLOOM's ranks drifted apart for months unseen. A sum over a tensor's words, as
integers, changes with every single flipped bit, and costs one pass over memory.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from runtime import dist, zero_layout
from runtime.dist import Ranks


class Drift(NamedTuple):
    """A rank whose memory is not what it should be."""

    rank: int | None  # None where two ranks differ and nothing says which of them is right
    tensor: str


class _Piece(NamedTuple):
    name: str
    start: int
    numel: int
    checksum: int


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor's bytes as 64-bit words, modulo 2⁶⁴; a scalar that is not waited for.

    64-bit words, because torch adds up smaller ones fifty times more slowly.
    """
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()  # a view as words must begin at one
    whole = data.numel() // 8 * 8
    rest = data[whole:].to(torch.int64) << (
        8 * torch.arange(data.numel() - whole, device=data.device)
    )
    return data[:whole].view(torch.int64).sum() + rest.sum()


def compare(engine: Any, stage: int, ranks: Ranks) -> list[Drift]:
    """Every rank that holds something else than it should; the same list on all. Collective.

    Stage 0: weights and moments of all ranks against each other; the majority is right. Stages 1
    and 2: each rank's weights against the master weights, rounded, of the rank that owns them.
    Stage 3: each rank's part of the weights against its own master weights. Between two steps only:
    a step rounds the master weights anew.
    """
    if stage == 0:
        return _compare_copies(engine, ranks)
    return _compare_with_masters(engine, stage, ranks)


def _compare_copies(engine: Any, ranks: Ranks) -> list[Drift]:
    mine = _checksums(list(_copies(engine)))
    everyone = [_read(text) for text in dist.gather_text(_write(mine))]
    drifted: dict[int, str] = {}
    undecided: list[Drift] = []
    for pieces in zip(*everyone, strict=True):
        counts = Counter(piece.checksum for piece in pieces).most_common()
        if len(counts) == 1:
            continue
        if len(counts) > 1 and counts[0][1] == counts[1][1]:
            undecided.append(Drift(None, pieces[0].name))
            continue
        for rank, piece in enumerate(pieces):
            if piece.checksum != counts[0][0]:
                drifted.setdefault(rank, piece.name)
    return [Drift(rank, name) for rank, name in drifted.items()] or undecided[:1]


def _copies(engine: Any) -> Iterator[tuple[str, int, torch.Tensor]]:
    states = getattr(engine.optimizer, "optimizer", engine.optimizer).state
    for name, parameter in engine.module.named_parameters():
        yield name, 0, parameter
        for key, value in states.get(parameter, {}).items():
            if torch.is_tensor(value):
                yield f"{name} ({key})", 0, value


def _compare_with_masters(engine: Any, stage: int, ranks: Ranks) -> list[Drift]:
    parameters = dict(engine.module.named_parameters())
    parts = list(zero_layout.parts(engine, stage, ranks))
    owned = _checksums(
        [(p.parameter, p.start, p.master.to(_stored_dtype(parameters[p.parameter]))) for p in parts]
    )
    wanted = [_read(text) for text in dist.gather_text(_write(owned))]
    if stage == 3:  # nothing else is held in common
        wanted = [pieces if rank == ranks.rank else [] for rank, pieces in enumerate(wanted)]
    places = [(owner, piece) for owner, pieces in enumerate(wanted) for piece in pieces]
    held = _checksums([(p.name, p.start, _stored(parameters[p.name], p)) for _, p in places])
    wrong = [
        (owner, piece.name)
        for (owner, piece), found in zip(places, held, strict=True)
        if found.checksum != piece.checksum
    ]
    reports = [json.loads(text) for text in dist.gather_text(json.dumps(wrong))]
    return _culprits(reports, is_shared=stage < 3 and ranks.world_size > 1)


def _culprits(reports: list[list[tuple[int, str]]], *, is_shared: bool) -> list[Drift]:
    """From what each rank found unlike its owner's: where all did, the owner's masters changed."""
    voices = Counter((owner, name) for report in reports for owner, name in report)
    drifted: dict[int, str] = {}
    for rank, report in enumerate(reports):
        for owner, name in report:
            if is_shared and voices[owner, name] == len(reports):
                drifted.setdefault(owner, f"{name} (master)")
            else:
                drifted.setdefault(rank, name)
    return [Drift(rank, name) for rank, name in sorted(drifted.items())]


def _stored_dtype(parameter: Any) -> torch.dtype:
    dtype: torch.dtype = getattr(parameter, "ds_tensor", parameter).dtype
    return dtype


def _stored(parameter: Any, piece: _Piece) -> torch.Tensor:
    """This rank's own copy of a stretch of a parameter."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3: the part of it that lies here
        part: torch.Tensor = parameter.ds_tensor[: piece.numel]
        return part
    flat: torch.Tensor = parameter.data.view(-1)
    return flat[piece.start : piece.start + piece.numel]


def _checksums(tensors: list[tuple[str, int, torch.Tensor]]) -> list[_Piece]:
    if not tensors:
        return []
    sums = torch.stack([checksum(tensor).cpu() for _, _, tensor in tensors]).tolist()
    return [
        _Piece(name, start, tensor.numel(), value)
        for (name, start, tensor), value in zip(tensors, sums, strict=True)
    ]


def _write(pieces: list[_Piece]) -> str:
    return json.dumps(pieces)


def _read(text: str) -> list[_Piece]:
    build: Callable[[list[Any]], _Piece] = _Piece._make
    return [build(row) for row in json.loads(text)]
