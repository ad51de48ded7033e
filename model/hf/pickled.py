"""Weights of old: pytorch_model.bin, read without running what a pickle may say.

The only place where torch.load stands (tests/security sees to it), always with weights_only=True:
torch's own interpreter of a pickle's instructions, which knows how to rebuild tensors and refuses
to call anything else. It had holes before (docs/adr/0003), so nothing here happens unasked:
`python -m model import --from-pickle` alone comes here.
"""

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.hf.config import is_plain_name, read_json
from model.hf.errors import CheckpointError
from model.hf.names import is_constant

BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class PickledTensors(Mapping[str, Tensor]):
    """The tensors of a directory's pickles, as views of mapped files where their format allows.

    Files that torch wrote before 1.6 are no zip archives and are held in memory. Raises
    `CheckpointError` for anything but a dict of plain dense tensors by name.
    """

    def __init__(self, directory: Path) -> None:
        self._tensors: dict[str, Tensor] = {}
        for path in pickled_files(directory):
            for name, tensor in _load(path).items():
                if name in self._tensors:
                    raise CheckpointError(f"{path}: {name} is in another file too; keep one")
                self._tensors[name] = tensor

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def without_data(self) -> dict[str, Tensor]:
        """Return tensors of the same names and shapes that hold nothing."""
        return {name: t.to("meta") for name, t in self._tensors.items()}


def pickled_files(directory: Path) -> list[Path]:
    """Find the pickles of a directory. Raises `CheckpointError` when there are none."""
    if (directory / BIN).is_file():
        return [directory / BIN]
    if not (directory / BIN_INDEX).is_file():
        raise CheckpointError(f"{directory}: no pickled weights; expected {BIN} or {BIN_INDEX}")
    weight_map = read_json(directory / BIN_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory / BIN_INDEX}: expected a weight_map of tensors to files")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not is_plain_name(name, ".bin"):
            raise CheckpointError(
                f"{directory / BIN_INDEX}: got file name {name[:80]!r},"
                " expected pytorch_model-….bin"
            )
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory / name}: no such file, but {BIN_INDEX} lists it")
    return [directory / name for name in names]


def _load(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # a broken file fails in any way it likes
        raise CheckpointError(f"{path}: refused, not plainly tensors: {_reason(error)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, expected tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not _is_plain(value):
            kind = f"{value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(
                f"{path}: {repr(name)[:80]} is a {kind}, expected plain dense tensors by name"
            )
        if value.dtype not in _FLOATS and not is_constant(name):
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {name} has type {kind}; use unquantised weights")
    return dict(found)


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and type(value) in (Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _reason(error: Exception) -> str:
    """What torch complains of, without its advice on how to run the file all the same."""
    text = " ".join(str(error.__context__ or error).split())
    return text.split(" Check the documentation")[0][:200] or type(error).__name__
