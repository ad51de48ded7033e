"""Layout and manifest of a checkpoint directory. Torch-free.

checkpoints/step_00001000/   a Hugging Face model directory, and
    training/                optimizer slices (safetensors) and state.json
    MANIFEST.json            size and sha256 of every other file, written last
checkpoints/latest           a hint for people; the truth is the newest that verifies
"""

import hashlib
import operator
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import orjson

from runtime.errors import UserError

SCHEMA = 1
MANIFEST = "MANIFEST.json"
TRAINING = "training"
LATEST = "latest"
MAX_JSON_BYTES = 16 * 2**20  # a manifest of 100,000 files
ROOM = 1.2  # times a checkpoint's size that should be free before it is written
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


def step_of(path: Path) -> int | None:
    """The step that a directory's name says; None for a name that says none."""
    match = _STEP_DIR.fullmatch(path.name)
    return int(match[1]) if match else None


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object of bounded size. Raises OSError, and ValueError for anything else."""
    with path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
    value = orjson.loads(content)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, expected an object")
    return value


def list_checkpoints(root: Path) -> list[CheckpointInfo]:
    """Every committed checkpoint directory, oldest first."""
    if not root.is_dir():
        return []
    found = []
    for path in root.iterdir():
        step = step_of(path)
        if step is not None and path.is_dir():
            found.append(CheckpointInfo(step, path))
    return sorted(found)


def size_of(path: Path) -> int | None:
    """Bytes of a checkpoint as its manifest says; None where that cannot be read."""
    try:
        return sum(operator.index(e["size"]) for e in read_json(path / MANIFEST)["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


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


def verify(path: Path, share: int = 0, shares: int = 1) -> list[str]:
    """Everything that is wrong with a checkpoint, a line each; an empty list is a good one.

    Reads and hashes every byte. Files that the manifest does not name are wrong too. share: where
    several processes verify one checkpoint, which of the files this one reads, from 0; the others
    read theirs.
    """
    path = Path(path)
    try:
        manifest = read_json(path / MANIFEST)
        entries = manifest["files"].items()
        files = {name: (operator.index(e["size"]), str(e["sha256"])) for name, e in entries}
        schema, step = manifest["schema"], operator.index(manifest["step"])
    except FileNotFoundError:
        return [f"{path / MANIFEST}: missing, so the save was never finished"]
    except OSError as error:
        return [f"{path / MANIFEST}: cannot be read: {error.strerror}"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path / MANIFEST}: damaged ({type(error).__name__})"]
    if schema != SCHEMA:
        return [f"{path / MANIFEST}: schema {schema!r}, this version reads {SCHEMA}"]
    own = _shared_out({name: size for name, (size, _) in files.items()}, shares)[share]
    with ThreadPoolExecutor(_threads()) as pool:  # hashing releases Python's lock
        found = pool.map(lambda name: _verify_file(path, name, *files[name]), own)
        problems = [problem for problems in found for problem in problems]
    if step_of(path) not in (None, step):
        problems.append(f"{path}: holds step {step}, not the step that its name says")
    return problems + [f"{path / name}: not in {MANIFEST}" for name in _files_in(path) - set(files)]


def _shared_out(sizes: dict[str, int], shares: int) -> list[list[str]]:
    """Each name once, the largest first and always to whom has the fewest bytes so far."""
    shared: list[list[str]] = [[] for _ in range(shares)]
    loads = [0] * shares
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        shared[least].append(name)
        loads[least] += sizes[name]
    return shared


def _threads() -> int:
    """Threads that hash: this process's part of the machine's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    return max(1, min(8, (cores or 1) // processes))


def _verify_file(root: Path, name: str, size: int, sha256: str) -> list[str]:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not name.isprintable():
        return [f"{root / MANIFEST}: names {name[:80]!r}, outside the checkpoint"]
    file = root / relative
    try:
        if file.is_symlink() or not file.is_file() or not _is_inside(file, root):
            return [f"{file}: missing"]
        if file.stat().st_size != size:
            return [f"{file}: {file.stat().st_size} bytes, expected {size}"]
        return [] if hash_file(file) == sha256 else [f"{file}: its sha256 differs: damaged"]
    except OSError as error:
        return [f"{root / name[:80]}: cannot be read: {error.strerror}"]


def _is_inside(file: Path, root: Path) -> bool:
    """Whether no directory on the way is a link to elsewhere."""
    return file.resolve().is_relative_to(root.resolve())


def _files_in(root: Path) -> set[str]:
    # Not rglob, which raises where retention deletes a folder meanwhile.
    found = [
        Path(folder, name)
        for folder, folders, files in os.walk(root)
        for name in (*files, *(n for n in folders if Path(folder, n).is_symlink()))
    ]
    return {path.relative_to(root).as_posix() for path in found} - {MANIFEST}


def newest_verified(root: Path, warn: Callable[[str], None] = print) -> CheckpointInfo | None:
    """The newest checkpoint whose every byte verifies; None where none was ever committed.

    `root` is a folder of checkpoints, or a run directory that holds one.
    Damaged ones are passed over with a warning. Raises UserError where checkpoints exist but
    none is whole: training must not silently start at step 0.
    """
    root = checkpoints_in(root)
    return newest_of(root, list_checkpoints(root), verify, warn)


def checkpoints_in(directory: Path) -> Path:
    """The folder of checkpoints: the directory itself, or the one in a run directory."""
    inner = Path(directory) / "checkpoints"
    return inner if inner.is_dir() else Path(directory)


def newest_of(
    root: Path,
    candidates: list[CheckpointInfo],
    problems_of: Callable[[Path], list[str]],
    warn: Callable[[str], None],
) -> CheckpointInfo | None:
    """The newest candidate without problems. The rest as in `newest_verified`."""
    for info in reversed(candidates):
        problems = problems_of(info.path)
        if not problems:
            return info
        warn(f"warning: checkpoint passed over: {problems[0]}")
    if candidates:
        raise UserError(
            f"{root}: none of the {len(candidates)} checkpoints is whole; restore one, or move the "
            "folder away to start at step 0"
        )
    return None
