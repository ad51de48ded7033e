"""Released models and training checkpoints to canonical Hugging Face directories.

Tensor by tensor: what is written is a view of a mapped file until a few megabytes of it are
converted, so a model of any size takes little memory.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.config import ModelConfig
from model.hf.architecture import TRUNK, stored_head, trunk_class
from model.hf.config import read_config, read_json, to_generation_config, to_hf_config
from model.hf.directory import (
    TOKENIZER_FILES,
    TensorFiles,
    Tensors,
    stored_names,
    tokenizer_files,
    weight_files,
)
from model.hf.errors import CheckpointError
from model.hf.manifest import damages, newest_step
from model.hf.pickled import PickledTensors
from model.hf.shards import INDEX, MAX_SHARD_BYTES, WEIGHTS, staged, write_json, write_shards


class Conversion(NamedTuple):
    """What was written."""

    config: ModelConfig
    head: str  # "trunk" where there is none
    tensors: int
    bytes: int
    left_out: tuple[str, ...]  # stored tensors of other heads, copies and constants
    has_tokenizer: bool


def import_model(
    source: str | Path,
    destination: str | Path,
    *,
    head: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    from_pickle: bool = False,
    files: Tensors | None = None,
) -> Conversion:
    """Write the model of any supported directory as `save_pretrained` would write it.

    head: default the one that config.json names. dtype: None keeps the tensors'. from_pickle: read
    pytorch_model.bin; see `model.hf.pickled`. files: where tensors are read from, each when it is
    written, instead of the directory. The destination appears whole or not at all. Raises
    `CheckpointError` for a source that does not fit and for a destination that exists.
    """
    source, destination = Path(source), Path(destination)
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such directory")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination}: exists already; name a new directory or remove it")
    config = read_config(source)
    if head is not None and head not in config.heads:
        raise CheckpointError(
            f"head: got {head!r}, expected one of {', '.join(config.heads)}, which family"
            f"={config.family!r} has"
        )
    head = head or stored_head(source, config)
    files = files or _open(source, from_pickle=from_pickle)
    try:
        names = stored_names(files, config, head)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    tensors = _Renamed(files, names)
    size = sum(t.numel() * (dtype or t.dtype).itemsize for t in tensors.values())
    _refuse_a_full_disk(destination, size)
    has_tokenizer = (source / TOKENIZER_FILES[0]).is_file()
    with staged(destination) as staging:
        write_shards(staging, tensors, dtype, max_shard_bytes)
        for name, content in _documents(source, config, head, _dtype_name(tensors, dtype)).items():
            write_json(staging / name, content)
        for path in tokenizer_files(source) if has_tokenizer else ():
            shutil.copyfile(path, staging / path.name)
    used = set(names.values())
    left_out = tuple(name for name in files if name not in used)
    return Conversion(config, head, len(tensors), size, left_out, has_tokenizer)


class _Renamed(Mapping[str, Tensor]):
    """Tensors under other names, each read whenever it is asked for."""

    def __init__(self, files: Tensors, names: dict[str, str]) -> None:
        self._files, self._names = files, names

    def __getitem__(self, name: str) -> Tensor:
        return self._files[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def export_step(
    source: str | Path,
    destination: str | Path,
    *,
    head: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Conversion:
    """Write the model of a training checkpoint alone, without what training needs.

    source: a checkpoint, a run with its checkpoints, or any model directory; of a run the newest
    checkpoint is taken. Files are checked against the checkpoint's manifest first. The rest as in
    `import_model`.
    """
    step = newest_step(Path(source))
    wrong = damages(step, lambda name: "/" not in name)
    if wrong:
        raise CheckpointError(f"{step}: {'; '.join(wrong[:8])}; name another checkpoint")
    return import_model(step, destination, head=head, dtype=dtype, max_shard_bytes=max_shard_bytes)


def _open(source: Path, *, from_pickle: bool) -> Tensors:
    if not from_pickle:
        return TensorFiles(source, None)
    if any((source / name).is_file() for name in (WEIGHTS, INDEX)):
        name = weight_files(source)[0].name
        raise CheckpointError(f"{source}: has {name}, which is safer; leave --from-pickle out")
    return PickledTensors(source)


def _refuse_a_full_disk(destination: Path, size: int) -> None:
    there = next(parent for parent in destination.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise CheckpointError(
            f"{destination}: {size / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free on its disk"
        )


def _dtype_name(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> str:
    """The dtype that config.json names: of most numbers, where the tensors differ."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        kind = dtype or tensor.dtype
        counts[kind] = counts.get(kind, 0) + tensor.numel()
    return str(max(counts, key=lambda kind: counts[kind])).removeprefix("torch.")


def _documents(
    source: Path, config: ModelConfig, head: str, dtype: str
) -> dict[str, dict[str, Any]]:
    is_bare = head == TRUNK
    content = to_hf_config(config, config.heads[0] if is_bare else head, dtype)
    if is_bare:
        content["architectures"] = [trunk_class(config.family)]
    generation = to_generation_config(config)
    if generation is None:
        return {"config.json": content}
    path = source / "generation_config.json"
    if path.is_file():
        # Its author's settings, such as several tokens that end a text, are worth keeping.
        theirs = read_json(path)
        generation |= {k: v for k, v in theirs.items() if k != "transformers_version"}
    return {"config.json": content, "generation_config.json": generation}
