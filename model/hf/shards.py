"""Writing tensors as safetensors files, a piece at a time, and whole directories at once.

The library's own `save_file` wants all tensors of a file in memory, in their final dtype and
layout; this writer holds a few megabytes, and its files are the same to the byte.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from model.hf.errors import CheckpointError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
_PIECE_BYTES = 16 * 2**20
# In the order in which the library writes them: wide first, so that all stay aligned.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


class Writable(Protocol):
    """A file that is being written."""

    def write(self, data: Any, /) -> int:
        """Write bytes, all of them."""
        ...


# Opens a file to be written, which is on disk when its context ends without an error.
Create = Callable[[Path], AbstractContextManager[Writable]]


class Part(NamedTuple):
    """Which of the weight files one of several writers writes: every `writers`-th from its own."""

    writer: int = 0
    writers: int = 1

    def holds(self, number: int) -> bool:
        """Whether the file of this number, from 0, falls to this writer."""
        return number % self.writers == self.writer


WHOLE = Part()


@contextmanager
def on_disk(path: Path) -> Iterator[Writable]:
    """Open a file to be written that is on disk when the context ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_shards(
    directory: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    part: Part = WHOLE,
    create: Create = on_disk,
) -> None:
    """Write tensors as one safetensors file, or above `max_shard_bytes` several and an index.

    dtype: of the stored tensors; None keeps each one's own. Tensors may be views of mapped files or
    live on another device: a few megabytes at a time are copied. part: of several writers, whose
    files together are those of one; tensors of others' files may be on the meta device. Files are
    on disk when this returns. Raises `CheckpointError` for a number that fp16 cannot hold.
    """
    sizes = {name: t.numel() * (dtype or t.dtype).itemsize for name, t in tensors.items()}
    files = shard_files(sizes, max_shard_bytes)
    for number, (file, names) in enumerate(files.items()):
        if part.holds(number):
            own = {name: tensors[name] for name in names}
            write_safetensors(directory / file, own, dtype, create)
    if len(files) > 1 and part.writer == 0:
        weight_map = {name: file for file, names in files.items() for name in names}
        total = {"total_size": sum(sizes.values())}
        write_json(directory / INDEX, {"metadata": total, "weight_map": weight_map}, create)


def shard_files(sizes: Mapping[str, int], max_shard_bytes: int) -> dict[str, list[str]]:
    """Which tensors each file holds, in order; sizes in bytes by tensor name."""
    shards = _shards(sizes, max_shard_bytes)
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    names = (f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1))
    return dict(zip(names, shards, strict=True))


def _shards(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    create: Create = on_disk,
) -> None:
    """Write one safetensors file, on disk when this returns.

    Layout: 8 bytes of header length, a JSON header padded to a multiple of 8, then the data
    (https://github.com/huggingface/safetensors#format).
    """
    order = list(_DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(dtype or tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor, stored = tensors[name], dtype or tensors[name].dtype
        start, end = end, end + tensor.numel() * stored.itemsize
        entry = {"dtype": _DTYPES[stored], "shape": list(tensor.shape)}
        header[name] = {**entry, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    room = torch.empty(_PIECE_BYTES, dtype=torch.uint8)
    with create(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = tensors[name].detach()
            _write_tensor(file, name, tensor, dtype or tensor.dtype, room)


def _write_tensor(
    file: Writable, name: str, tensor: Tensor, dtype: torch.dtype, room: Tensor
) -> None:
    tensor = tensor.reshape(1) if tensor.dim() == 0 else tensor
    for piece in _pieces(tensor, dtype):
        stored = piece
        if piece.dtype != dtype or piece.device.type != "cpu" or not piece.is_contiguous():
            # Always into the same room: allocations that come and go leave gaps, which add up.
            size = piece.numel() * dtype.itemsize
            fitting = room if size <= room.numel() else torch.empty(size, dtype=torch.uint8)
            stored = fitting[:size].view(dtype).view(piece.shape).copy_(piece)
        if dtype == torch.float16 and piece.dtype != dtype:
            is_lost = torch.isinf(stored) & ~torch.isinf(piece).to("cpu")
            if bool(is_lost.any()):
                raise CheckpointError(
                    f"{name}: holds numbers beyond 65504, which float16 cannot; store it as bf16"
                )
        file.write(stored.view(torch.uint8).numpy().data)


def _pieces(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Cut the first dimension so that a piece has a few megabytes."""
    if tensor.numel() == 0:
        return
    row_bytes = tensor.numel() // tensor.shape[0] * max(dtype.itemsize, tensor.dtype.itemsize)
    rows = max(1, _PIECE_BYTES // row_bytes)
    for start in range(0, tensor.shape[0], rows):
        yield tensor[start : start + rows]


def write_json(path: Path, content: Mapping[str, Any], create: Create = on_disk) -> None:
    """Write one JSON object, indented, on disk when this returns."""
    with create(path) as file:
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        file.write(text.encode())


@contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """Yield a hidden directory beside `directory` to fill, which takes its place at the end.

    A new directory appears whole or not at all; in an existing one files are replaced one by one.
    After an error nothing of it is left.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.parent / f".{directory.name}.partial-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        yield staging
        _publish(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, directory: Path) -> None:
    _sync(staging)
    if not directory.exists():
        staging.rename(directory)
    else:
        new = {path.name for path in staging.iterdir()}
        for name in sorted(new):
            (staging / name).replace(directory / name)
        for old in directory.glob("model*.safetensors*"):
            if old.name not in new:
                old.unlink()  # a shard or an index of the model that was here before
        _sync(directory)
    _sync(directory.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
