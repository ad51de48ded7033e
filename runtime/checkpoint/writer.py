"""Saving under ZeRO: every rank writes its part, then one rename makes the checkpoint exist."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import save_file

from runtime import dist
from runtime.checkpoint.commit import Entries, begin, commit, files_in, seal
from runtime.checkpoint.format import SCHEMA, TRAINING, step_dir, temporary_dir
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
    dist.together(lambda: begin(temporary), only_main=True)
    parameters = dict(engine.full_parameters())  # collective; whole on the main rank only
    steps = engine.optimizer_steps()
    slices = f"{TRAINING}/optimizer_"
    mine = f"{slices}{ranks.rank:05d}.safetensors"
    own: Entries = {}

    def write() -> None:
        _write_slices(temporary / mine, engine)
        if ranks.is_main:
            export(temporary, parameters)
            shapes = engine.parameter_shapes()
            fixed = {"schema": SCHEMA, "optimizer_steps": steps, "shapes": shapes}
            text = orjson.dumps({**fixed, **state}, option=orjson.OPT_INDENT_2)
            (temporary / TRAINING / "state.json").write_bytes(text)

    def seal_own() -> None:
        others = files_in(temporary) if ranks.is_main else []
        own.update(seal(temporary, [mine, *(n for n in others if not n.startswith(slices))]))

    dist.together(write)
    # Only now: while ranks write, the directory holds files that are about to be renamed.
    dist.together(seal_own)
    files: Entries = {}
    for text in dist.gather_text(json.dumps(own)):
        files |= json.loads(text)
    dist.together(lambda: commit(temporary, final, step, files), only_main=True)
    return final


def _write_slices(path: Path, engine: Engine) -> None:
    """One 1-D tensor per slice, named `parameter|key|start`; readers find slices by name alone."""
    tensors = {
        f"{s.parameter}|{s.key}|{s.start}": s.tensor.detach().to("cpu", copy=True).contiguous()
        for s in engine.optimizer_slices()
    }
    save_file(tensors, path, metadata={"format": "ingot-optimizer-slices"})
