"""Loading the training state of a verified checkpoint, on any number of ranks and ZeRO stage.

A manifest says that a checkpoint is as it was written, not by whom: nothing here is trusted.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from runtime.checkpoint.format import SCHEMA, TRAINING, read_json, step_of
from runtime.errors import UserError

STATE = "state.json"
_SLICE = re.compile(r"([^|]+)\|([^|]+)\|(0|[1-9][0-9]{0,17})")  # parameter|key|start
_FLOATS = {"F64", "F32", "BF16", "F16"}
_MOST = 2**53
_KINDS = {"loader": dict, "config": dict, "shapes": dict, "versions": dict}
_COUNTS = ("step", "tokens_seen", "optimizer_steps", "world_size")


class _Stored(NamedTuple):
    start: int
    numel: int
    values: Any  # safetensors' lazy slice


class TrainingState:
    """state.json, and the optimizer slices of all the ranks that wrote them.

    Raises UserError for files that are not as a save writes them.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._dir = checkpoint / TRAINING
        self.values = _read_values(self._dir / STATE, step_of(checkpoint))
        self._index: dict[tuple[str, str], list[_Stored]] = defaultdict(list)
        for file in sorted(self._dir.glob("optimizer_*.safetensors")):
            for parameter, key, piece in _slices(file):
                self._index[parameter, key].append(piece)
        for pieces in self._index.values():
            pieces.sort(key=lambda piece: piece.start)

    def read(self, parameter: str, key: str, start: int, numel: int) -> torch.Tensor:
        """The stretch [start, start + numel) of one flattened tensor, read from disk piecewise.

        To be copied from: where one piece holds all of it, it is a view of the mapped file.
        """
        for piece in self._index.get((parameter, key), []):
            skipped = start - piece.start
            if 0 <= skipped <= piece.numel - numel:
                whole: torch.Tensor = piece.values[skipped : skipped + numel]
                return whole
        out = torch.empty(numel)
        filled = start  # all before it is
        for piece in self._index.get((parameter, key), []):
            low, high = max(filled, piece.start), min(start + numel, piece.start + piece.numel)
            if low > filled or low >= high:
                continue
            out[low - start : high - start] = piece.values[low - piece.start : high - piece.start]
            filled = high
        if filled != start + numel:
            raise UserError(
                f"{self._dir}: {key} of {parameter} has {filled - start} of the {numel} values "
                "asked for; the checkpoint is of another architecture"
            )
        return out

    def holds(self, key: str) -> bool:
        """Whether there is any slice of this key."""
        return any(held == key for _, held in self._index)


def _read_values(path: Path, step: int | None) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if values.get("schema", SCHEMA) != SCHEMA:
        raise _odd(path, f"schema {str(values['schema'])[:40]!r}, this version reads {SCHEMA}")
    for name in _COUNTS:
        value = values.get(name, 0)
        if type(value) is not int or not 0 <= value <= _MOST:
            raise _odd(path, f"{name} is {str(value)[:40]!r}, expected a count")
    for name, kind in _KINDS.items():
        if not isinstance(values.get(name, {}), kind):
            raise _odd(
                path, f"{name} is a {type(values[name]).__name__}, expected a {kind.__name__}"
            )
    if step is not None and values.get("step", step) != step:
        raise _odd(path, f"of step {values['step']}, but its directory is of step {step}")
    return values


def _slices(file: Path) -> Iterator[tuple[str, str, _Stored]]:
    try:
        opened: Any = safe_open(file, framework="pt")  # memory-mapped: costs address space alone
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            match, stored = _SLICE.fullmatch(name), opened.get_slice(name)
            shape, dtype = stored.get_shape(), stored.get_dtype()
            if match is None or len(shape) != 1 or dtype not in _FLOATS:
                raise _odd(file, f"{name[:80]!r} of {dtype} {shape} is no optimizer slice")
            yield match[1], match[2], _Stored(int(match[3]), shape[0], stored)
    except (SafetensorError, OSError, ValueError) as error:
        raise _odd(
            file, f"not readable as safetensors: {' '.join(str(error).split())[:300]}"
        ) from error


def _odd(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; restore the file, or take another checkpoint")


@contextlib.contextmanager
def understood(checkpoint: Path) -> Iterator[None]:
    """Tell in one line that a state is not as this version writes it, where using it fails so.

    For the parts of state.json that only their owners know the inside of.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise _odd(
            checkpoint / TRAINING / STATE, f"not as this version writes it ({what})"
        ) from error
