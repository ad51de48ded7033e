"""The commit protocol on one disk: files, then the manifest, then one rename. Torch-free."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from runtime.checkpoint.format import (
    LATEST,
    MANIFEST,
    SCHEMA,
    TRAINING,
    fsync_path,
    hash_file,
    list_checkpoints,
)

Entries = dict[str, dict[str, Any]]  # file name in the checkpoint → size and sha256


def begin(temporary: Path) -> None:
    """Make the directory that is written to, in place of one that a crash left."""
    if temporary.exists():
        shutil.rmtree(temporary)
    (temporary / TRAINING).mkdir(parents=True)


def files_in(directory: Path) -> list[str]:
    """The names of all files below a directory, as the manifest writes them."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in paths)


def seal(directory: Path, names: Iterable[str]) -> Entries:
    """Force files to the disk, and return their manifest entries."""
    entries: Entries = {}
    for name in names:
        path = directory / name
        fsync_path(path)
        entries[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    return entries


def commit(temporary: Path, final: Path, step: int, files: Entries) -> None:
    """Make a sealed directory a checkpoint. A crash leaves the previous state or the new one."""
    manifest = {"schema": SCHEMA, "step": step, "files": files}
    (temporary / MANIFEST).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    for path in (temporary / MANIFEST, temporary / TRAINING, temporary):
        fsync_path(path)
    if final.exists():  # a damaged one of the same step, passed over when the run resumed
        shutil.rmtree(final)
    temporary.rename(final)
    fsync_path(final.parent)
    hint = final.parent / f".{LATEST}.tmp"
    hint.write_text(f"{final.name}\n")
    hint.replace(final.parent / LATEST)


def prune(root: Path, keep_last: int) -> None:
    """Delete all but the newest checkpoints (0 keeps all), and what crashed saves left behind."""
    for info in list_checkpoints(root)[:-keep_last] if keep_last else []:
        # Renamed first: a crash while deleting must not leave half a checkpoint under its name.
        shutil.rmtree(info.path.rename(info.path.with_name(f".old_{info.path.name}")))
    for leftover in [*root.glob(".old_step_*"), *root.glob(".tmp_step_*")]:
        shutil.rmtree(leftover, ignore_errors=True)
