"""Layout and manifest of a checkpoint directory. Torch-free.

checkpoints/step_00001000/   a Hugging Face model directory, and
    training/                optimizer slices (safetensors) and state.json
    MANIFEST.json            size and sha256 of every other file, written last
checkpoints/latest           a hint for people; the truth is the newest that verifies
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import orjson

from runtime.errors import UserError

SCHEMA = 1
MANIFEST = "MANIFEST.json"
TRAINING = "training"
LATEST = "latest"
_STEP_DIR = re.compile(r"^step_(\d{8,})$")


class CheckpointInfo(NamedTuple):
    """A committed checkpoint; its bytes may still be damaged (see `verify`)."""

    step: int
    path: Path

    def __fspath__(self) -> str:
        """So that it can be given wherever a directory is asked for."""
        return str(self.path)


def step_dir(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step_{step:08d}"


def temporary_dir(root: Path, step: int) -> Path:
    """Where it lies while it is written: never taken for a checkpoint."""
    return root / f".tmp_step_{step:08d}"


def list_checkpoints(root: Path) -> list[CheckpointInfo]:
    """Every committed checkpoint directory, oldest first."""
    if not root.is_dir():
        return []
    found = []
    for path in root.iterdir():
        match = _STEP_DIR.match(path.name)
        if match and path.is_dir():
            found.append(CheckpointInfo(int(match[1]), path))
    return sorted(found)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Force a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(path: Path) -> list[str]:
    """Everything that is wrong with a checkpoint, a line each; an empty list is a good one.

    Reads and hashes every byte. Files that the manifest does not name are wrong too.
    """
    path = Path(path)
    try:
        manifest = orjson.loads((path / MANIFEST).read_bytes())
        files = {
            str(name): (int(e["size"]), str(e["sha256"])) for name, e in manifest["files"].items()
        }
        schema, step = manifest["schema"], int(manifest["step"])
    except FileNotFoundError:
        return [f"{path / MANIFEST}: missing, so the save was never finished"]
    except OSError as error:
        return [f"{path / MANIFEST}: cannot be read: {error.strerror}"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path / MANIFEST}: damaged ({type(error).__name__})"]
    if schema != SCHEMA:
        return [f"{path / MANIFEST}: schema {schema!r}, this version reads {SCHEMA}"]
    problems = [p for name, entry in files.items() for p in _verify_file(path, name, *entry)]
    match = _STEP_DIR.match(path.name)
    if match and int(match[1]) != step:
        problems.append(f"{path}: holds step {step}, not the step that its name says")
    return problems + [f"{path / name}: not in {MANIFEST}" for name in _files_in(path) - set(files)]


def _verify_file(root: Path, name: str, size: int, sha256: str) -> list[str]:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        return [f"{root / MANIFEST}: names {name!r}, outside the checkpoint"]
    file = root / relative
    try:
        if file.is_symlink() or not file.is_file():
            return [f"{file}: missing"]
        if file.stat().st_size != size:
            return [f"{file}: {file.stat().st_size} bytes, expected {size}"]
        return [] if hash_file(file) == sha256 else [f"{file}: its sha256 differs: damaged"]
    except OSError as error:
        return [f"{file}: cannot be read: {error.strerror}"]


def _files_in(root: Path) -> set[str]:
    names = {p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir()}
    return names - {MANIFEST}


def newest_verified(root: Path, warn: Callable[[str], None] = print) -> CheckpointInfo | None:
    """The newest checkpoint whose every byte verifies; None where none was ever committed.

    `root` is a folder of checkpoints, or a run directory that holds one.
    Damaged ones are passed over with a warning. Raises UserError where checkpoints exist but
    none is whole: training must not silently start at step 0.
    """
    root = Path(root)
    root = root / "checkpoints" if (root / "checkpoints").is_dir() else root
    candidates = list_checkpoints(root)
    for info in reversed(candidates):
        problems = verify(info.path)
        if not problems:
            return info
        warn(f"warning: checkpoint passed over: {problems[0]}")
    if candidates:
        raise UserError(
            f"{root}: none of the {len(candidates)} checkpoints is whole; restore one, or move the "
            "folder away to start at step 0"
        )
    return None
