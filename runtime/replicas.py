"""Do ranks still hold the same? Bit for bit, what they should hold in common is compared.

Memory and interconnects flip bits without a word (Llama 3, arXiv 2407.21783, table 5: 6 of 419
interruptions), and BLOOM's ranks drifted apart for months unseen. A sum over a tensor's words, as
integers, changes with every single flipped bit, and costs one pass over memory.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from runtime import dist, zero_layout, zero_swap
from runtime.dist import Ranks


class Drift(NamedTuple):
    """A rank whose memory is not what it should be."""

    rank: int | None  # None where two ranks differ and nothing says which of them is right
    tensor: str


_Tensor = tuple[str, int, torch.Tensor]  # a stretch of a parameter: its name and where it begins


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
    mine = _checksums(_copies(engine))
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


def _copies(engine: Any) -> Iterator[_Tensor]:
    states = getattr(engine.optimizer, "optimizer", engine.optimizer).state
    for name, parameter in engine.module.named_parameters():
        yield name, 0, parameter
        for key, value in states.get(parameter, {}).items():
            if torch.is_tensor(value):
                yield f"{name} ({key})", 0, value


def _compare_with_masters(engine: Any, stage: int, ranks: Ranks) -> list[Drift]:
    parameters = dict(engine.module.named_parameters())
    owned = _checksums(
        (p.parameter, p.start, p.master.to(parameters[p.parameter].dtype))
        for p in zero_layout.parts(engine, stage, ranks)
    )
    wanted = [_read(text) for text in dist.gather_text(_write(owned))]
    if stage == 3:  # nothing else is held in common
        wanted = [pieces if rank == ranks.rank else [] for rank, pieces in enumerate(wanted)]
    places = [(owner, piece) for owner, pieces in enumerate(wanted) for piece in pieces]
    held = _checksums(_stored(parameters, [piece for _, piece in places]))
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


def _stored(parameters: dict[str, Any], pieces: Iterable[_Piece]) -> Iterator[_Tensor]:
    """This rank's own copies of stretches of parameters."""
    for name, start, numel, _ in pieces:
        parameter = parameters[name]
        if hasattr(parameter, "ds_tensor"):  # ZeRO-3: the part of it that lies here
            with zero_swap.own_part(parameter) as part:
                yield name, start, part[:numel]
        else:
            yield name, start, parameter.data.view(-1)[start : start + numel]


def _checksums(tensors: Iterable[_Tensor]) -> list[_Piece]:
    """The checksum of each; one tensor is looked at before the next is asked for."""
    sums = [
        (name, start, tensor.numel(), checksum(tensor).cpu()) for name, start, tensor in tensors
    ]
    return [_Piece(name, start, numel, int(value)) for name, start, numel, value in sums]


def _write(pieces: list[_Piece]) -> str:
    return json.dumps(pieces)


def _read(text: str) -> list[_Piece]:
    build: Callable[[list[Any]], _Piece] = _Piece._make
    return [build(row) for row in json.loads(text)]
