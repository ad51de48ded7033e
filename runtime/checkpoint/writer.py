"""Saving: every rank writes its part, then one rename makes the checkpoint exist."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import save_file

from runtime import dist
from runtime.checkpoint.format import (
    LATEST,
    MANIFEST,
    SCHEMA,
    TRAINING,
    fsync_path,
    hash_file,
    list_checkpoints,
    step_dir,
    temporary_dir,
)
from runtime.engine import Engine

# Writes the model's own files into a directory, from whole parameters by name.
Export = Callable[[Path, dict[str, torch.Tensor]], None]


def save(root: Path, step: int, engine: Engine, export: Export, state: dict[str, Any]) -> Path:
    """Commit a checkpoint of all ranks, and return its directory. Collective.

    Protocol: every rank writes and fsyncs its files in a temporary directory; hashes are gathered;
    the main rank writes and fsyncs the manifest and the directory, renames it, and fsyncs the
    parent. A crash at any point leaves either the previous checkpoint or the new one.
    """
    final, temporary = step_dir(root, step), temporary_dir(root, step)
    ranks = engine.ranks
    _together(lambda: _start(temporary) if ranks.is_main else None)
    parameters = dict(engine.full_parameters())  # collective; whole on the main rank only
    own = [_optimizer_name(ranks.rank)]
    _together(lambda: _write_optimizer(temporary / own[0], engine))
    if ranks.is_main:
        full_state = {"schema": SCHEMA, "optimizer_steps": engine.optimizer_steps(), **state}
        _together(lambda: _write_model(temporary, export, parameters, full_state))
        own = sorted(p.relative_to(temporary).as_posix() for p in _files(temporary))
        own = [name for name in own if not name.startswith(f"{TRAINING}/optimizer_")] + [
            _optimizer_name(ranks.rank)
        ]
    else:
        _together(lambda: None)
    entries = {name: _entry(temporary / name) for name in own}
    gathered = dist.gather_text(json.dumps(entries))
    _together(lambda: _commit(final, temporary, step, gathered) if ranks.is_main else None)
    return final


def _together(action: Callable[[], None]) -> None:
    """Run an action on every rank, and fail on all of them if it failed on one."""
    error = None
    try:
        action()
    except OSError as problem:
        error = f"checkpoint not saved: {problem}; the previous one is intact"
    dist.raise_together(error)


def _start(temporary: Path) -> None:
    if temporary.exists():  # left by a crash
        shutil.rmtree(temporary)
    (temporary / TRAINING).mkdir(parents=True)


def _optimizer_name(rank: int) -> str:
    return f"{TRAINING}/optimizer_{rank:05d}.safetensors"


def _write_optimizer(path: Path, engine: Engine) -> None:
    """One 1-D tensor per slice, named `parameter|key|start`; readers find slices by name alone."""
    tensors = {
        f"{s.parameter}|{s.key}|{s.start}": s.tensor.detach().to("cpu", copy=True).contiguous()
        for s in engine.optimizer_slices()
    }
    save_file(tensors, path, metadata={"format": "ingot-optimizer-slices"})
    fsync_path(path)


def _write_model(
    temporary: Path, export: Export, parameters: dict[str, torch.Tensor], state: dict[str, Any]
) -> None:
    export(temporary, parameters)
    (temporary / TRAINING / "state.json").write_bytes(
        orjson.dumps(state, option=orjson.OPT_INDENT_2)
    )
    for path in _files(temporary):
        fsync_path(path)


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


def _commit(final: Path, temporary: Path, step: int, gathered: list[str]) -> None:
    files: dict[str, Any] = {}
    for text in gathered:
        files |= json.loads(text)
    manifest = {"schema": SCHEMA, "step": step, "files": files}
    (temporary / MANIFEST).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    fsync_path(temporary / MANIFEST)
    fsync_path(temporary / TRAINING)
    fsync_path(temporary)
    if final.exists():  # a damaged one of the same step, passed over when the run resumed
        shutil.rmtree(final)
    temporary.rename(final)
    fsync_path(final.parent)
    hint = final.parent / f".{LATEST}.tmp"
    hint.write_text(f"{final.name}\n")
    hint.replace(final.parent / LATEST)


def prune(root: Path, keep_last: int) -> None:
    """Delete all but the newest checkpoints (0 keeps all), and what crashed saves left behind."""
    committed = list_checkpoints(root)
    for info in committed[:-keep_last] if keep_last else []:
        doomed = info.path.rename(info.path.with_name(f".old_{info.path.name}"))
        shutil.rmtree(doomed)
    for leftover in [*root.glob(".old_step_*"), *root.glob(".tmp_step_*")]:
        shutil.rmtree(leftover, ignore_errors=True)
