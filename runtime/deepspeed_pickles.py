"""Files that DeepSpeed pickles, read without running what a pickle may say.

One of the two places where torch.load stands (tests/security sees to it), always with
weights_only=True: torch's own interpreter of a pickle's instructions, which calls nothing that is
not on its list. DeepSpeed's files name a few classes beyond that list. Each of them is answered
with one stand-in that takes anything and keeps nothing, so that no class of another package is
ever imported, made or filled; any other name refuses the file (docs/adr/0003).
"""

import math
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import EXIT_BAD_INPUT, UserError

# All that is wanted of a checkpoint are tensors, numbers and texts; these are in the way.
FOREIGN = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    # What callers of save_checkpoint keep beside it: arguments and states of random generators.
    "argparse.Namespace",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
)
_MAX_COUNT = 2**50
MAX_STRUCTURE_BYTES = 64 * 2**20  # of a pickle without its tensors: 100,000 parameters take 20 MB


class _Inert:
    """Stands for any object of a foreign class."""

    __slots__ = ()

    def __new__(cls, *_: object) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Take what a pickle wants to put in, and drop it."""


def read_dict(path: Path) -> dict[str, Any]:
    """The content of a file that holds a dict; see `read`."""
    content = read(path)
    if not isinstance(content, dict):
        raise _refused(path, f"holds a {type(content).__name__}, expected a dict")
    return content


def read(path: Path) -> Any:
    """The content of one of DeepSpeed's files: plain dicts, lists, numbers, texts, dense tensors.

    Tensors are views of the mapped file. What is none of these comes as None. Raises UserError, in
    one line, for a file that cannot be read so.
    """
    _refuse_odd_archives(path)
    stand_ins: list[Any] = [(_Inert, name) for name in FOREIGN]
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(stand_ins):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return _plain(found, {}, path)
    except UserError:
        raise
    except Exception as error:  # a broken file fails in any way it likes
        raise _refused(path, _reason(error)) from None


def _refuse_odd_archives(path: Path) -> None:
    """Tensors are mapped, so that a file must hold every byte that it says it has."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise refusal(path, f"cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise _refused(path, "no zip archive, as torch.save has written since 1.6") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _refused(path, "compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > size:
        raise _refused(path, "its entries hold more than the file has bytes")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise _refused(path, "an archive of TorchScript, which is code")
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if sum(entry.file_size for entry in pickles) > MAX_STRUCTURE_BYTES:
        raise _refused(path, f"more than {MAX_STRUCTURE_BYTES} bytes beside its tensors")


def _plain(value: Any, seen: dict[int, Any], path: Path) -> Any:
    """A copy out of exact types alone, each shared part copied once; raises for a cycle.

    A pickle may put attributes on an OrderedDict that hide its methods: none of them is called.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return _dense(value, path)
    if not isinstance(value, dict | list | tuple):
        return None
    if id(value) in seen:
        if seen[id(value)] is None:
            raise _refused(path, "holds a part that holds itself")
        return seen[id(value)]
    seen[id(value)] = None
    copy: Any
    if isinstance(value, dict):
        pairs = list(dict.items(value))
        copy = {k: _plain(v, seen, path) for k, v in pairs if type(k) in (str, int)}
    elif isinstance(value, tuple):
        copy = tuple(_plain(item, seen, path) for item in tuple.__iter__(value))
    else:
        copy = [_plain(item, seen, path) for item in list.__iter__(value)]
    seen[id(value)] = copy
    return copy


def _dense(tensor: Tensor, path: Path) -> Tensor:
    """Refuse what is no plain view of bytes of the file: expanded, sparse or quantised tensors."""
    is_plain = (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
    )
    if not is_plain:
        raise _refused(path, f"holds a {tensor.layout} tensor on {tensor.device}, expected dense")
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.itemsize > held:
        raise _refused(path, f"holds a tensor of {tensor.numel()} values in {held} bytes")
    return tensor.detach()


def _refused(path: Path, reason: str) -> UserError:
    return refusal(path, f"refused as a file of DeepSpeed: {reason}")


def refusal(where: Path | str, reason: str) -> UserError:
    """The error of a checkpoint that is not as it should be, in one line whatever it holds."""
    return UserError(" ".join(f"{where}: {reason}".split())[:500], status=EXIT_BAD_INPUT)


def _reason(error: Exception) -> str:
    """What torch complains of, without its advice on how to run the file all the same."""
    text = " ".join(str(error.__context__ or error).split())
    for advice in (" Please use `torch.serialization", " Check the documentation"):
        text = text.split(advice)[0]
    return text[:200] or type(error).__name__


class Node:
    """A place in a file's content, which complains by its name when it is not as expected."""

    def __init__(self, value: Any, where: Path | str) -> None:
        self.value, self.where = value, where

    def __getitem__(self, key: str | int) -> "Node":
        holds = isinstance(self.value, dict) and key in self.value
        holds = holds or (isinstance(self.value, list | tuple) and key in range(len(self.value)))
        if not holds:
            raise refusal(self.where, f"has no {key!r}")
        return Node(self.value[key], f"{self.where}: {key}")

    def get(self, key: str | int) -> "Node | None":
        """The part of this name, or None where it is absent or None."""
        is_there = isinstance(self.value, dict) and self.value.get(key) is not None
        return self[key] if is_there else None

    def parts(self, key: str) -> Iterator[tuple[Any, "Node"]]:
        """What `items` of the part of this name are; nothing where it is absent or None."""
        part = self.get(key)
        return iter(()) if part is None else part.items()

    def items(self) -> Iterator[tuple[Any, "Node"]]:
        """Each key or position with its part."""
        held = {} if self.value is None else self.value
        if not isinstance(held, dict | list | tuple):
            raise refusal(self.where, f"is a {type(held).__name__}, expected several parts")
        for key, value in held.items() if isinstance(held, dict) else enumerate(held):
            yield key, Node(value, f"{self.where}: {key}")

    def list(self) -> list["Node"]:
        """The parts of a list, or a lone value as a list of one."""
        if not isinstance(self.value, list | tuple):
            return [self]
        return [part for _, part in self.items()]

    def count(self, most: int = _MAX_COUNT) -> int:
        """A number that counts something; also from a tensor of one."""
        value = self.value
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise refusal(self.where, f"is {str(value)[:60]}, expected a count")
        return int(value)

    def shape(self) -> tuple[int, ...]:
        """A tensor's shape."""
        sizes = tuple(part.count() for part in self.list())
        if len(sizes) > 8 or math.prod(sizes) > _MAX_COUNT:
            raise refusal(self.where, "is no shape of a tensor")
        return sizes

    def flat(self) -> Tensor:
        """A tensor of floats, as one row."""
        if not isinstance(self.value, Tensor) or not self.value.is_floating_point():
            kind = type(self.value).__name__
            raise refusal(self.where, f"is a {kind}, expected a tensor of floats")
        return self.value.reshape(-1)
