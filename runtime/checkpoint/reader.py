"""Loading the training state of a verified checkpoint, on any number of ranks and ZeRO stage."""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import torch
from safetensors import safe_open

from runtime.checkpoint.format import TRAINING
from runtime.errors import UserError


class _Stored(NamedTuple):
    start: int
    numel: int
    values: Any  # safetensors' lazy slice


class TrainingState:
    """state.json, and the optimizer slices of all the ranks that wrote them."""

    def __init__(self, checkpoint: Path) -> None:
        self._dir = checkpoint / TRAINING
        self.values: dict[str, Any] = orjson.loads((self._dir / "state.json").read_bytes())
        self._index: dict[tuple[str, str], list[_Stored]] = defaultdict(list)
        for file in sorted(self._dir.glob("optimizer_*.safetensors")):
            # Memory-mapped: costs address space alone.
            opened: Any = safe_open(file, framework="pt")
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                parameter, key, start = name.split("|")
                stored = opened.get_slice(name)
                piece = _Stored(int(start), stored.get_shape()[0], stored)
                self._index[parameter, key].append(piece)

    def read(self, parameter: str, key: str, start: int, numel: int) -> torch.Tensor:
        """The stretch [start, start + numel) of one flattened tensor, read from disk piecewise."""
        out = torch.empty(numel)
        filled = 0
        for piece in self._index.get((parameter, key), []):
            low, high = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if low >= high:
                continue
            out[low - start : high - start] = piece.values[low - piece.start : high - piece.start]
            filled += high - low
        if filled != numel:
            raise UserError(
                f"{self._dir}: {key} of {parameter} has {filled} of the {numel} values asked for; "
                "the checkpoint is of another architecture"
            )
        return out
