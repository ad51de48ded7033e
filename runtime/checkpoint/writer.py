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
    own: Entries = {}

    def write_part() -> None:
        name = f"{TRAINING}/optimizer_{ranks.rank:05d}.safetensors"
        _write_slices(temporary / name, engine)
        names = [name]
        if ranks.is_main:
            export(temporary, parameters)
            full_state = {"schema": SCHEMA, "optimizer_steps": steps, **state}
            text = orjson.dumps(full_state, option=orjson.OPT_INDENT_2)
            (temporary / TRAINING / "state.json").write_bytes(text)
            # The other ranks are writing their slices meanwhile, and seal them themselves.
            slices = f"{TRAINING}/optimizer_"
            names += [n for n in files_in(temporary) if not n.startswith(slices)]
        own.update(seal(temporary, names))

    dist.together(write_part)
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
