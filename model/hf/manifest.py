"""A run's checkpoints and their MANIFEST.json, as far as a reader of models needs them. No torch.

The format is described in docs/formats.md: {"schema", "step", "files": {name: {size, sha256}}}.
"""

import hashlib
import operator
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from model.hf.config import read_json
from model.hf.errors import CheckpointError

MANIFEST = "MANIFEST.json"
_SCHEMA = 1
_STEP = re.compile(r"step_(\d{8,})")


def newest_step(source: Path) -> Path:
    """The directory itself where it holds a model, or the newest finished checkpoint of a run.

    Raises `CheckpointError` when there is neither.
    """
    if (source / "config.json").is_file():
        return source
    if not source.is_dir():
        raise CheckpointError(
            f"{source}: no such directory; models are read from local directories only"
        )
    root = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    steps = [p for p in root.iterdir() if _STEP.fullmatch(p.name) and (p / MANIFEST).is_file()]
    if not steps:
        raise CheckpointError(
            f"{source}: no config.json and no finished checkpoint; expected a model directory, a"
            " checkpoint (step_…) or a run"
        )
    return max(steps, key=lambda path: int(path.name.removeprefix("step_")))


def damages(directory: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Everything that differs from the directory's manifest, a phrase each; [] without a manifest.

    wanted: which of the named files to read and hash; all by default, and then files that it does
    not name are wrong too.
    """
    if not (directory / MANIFEST).is_file():
        return []
    try:
        raw = read_json(directory / MANIFEST)
        if raw.get("schema") != _SCHEMA:
            return [f"{MANIFEST} has schema {raw.get('schema')!r}, this version reads {_SCHEMA}"]
        entries = {
            str(name): (operator.index(e["size"]), str(e["sha256"])) for name, e in _files(raw)
        }
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} is damaged ({type(error).__name__})"]
    named = {name: entry for name, entry in entries.items() if wanted(name)}
    found = [_damage(directory, name, entry) for name, entry in named.items()]
    there = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if not p.is_dir()}
    extra = sorted(there - {*entries, MANIFEST}) if len(named) == len(entries) else []
    return [
        *(problem for problem in found if problem),
        *(f"{name} is not in {MANIFEST}" for name in extra),
    ]


def _files(raw: dict[str, Any]) -> Any:
    return raw["files"].items()


def _damage(directory: Path, name: str, entry: tuple[int, str]) -> str | None:
    relative, (size, sha256) = PurePosixPath(name), entry
    if relative.is_absolute() or ".." in relative.parts or not name.isprintable():
        return f"{MANIFEST} names {name[:80]!r}, outside the directory"
    path = directory / relative
    try:
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {MANIFEST} says {size}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{name[:80]} cannot be read: {error.strerror}"
    return None if digest == sha256 else f"{name} is damaged: its sha256 differs from {MANIFEST}"
