"""A pretraining run that takes a second: its config, changed by dotted keys."""

from pathlib import Path
from typing import Any

import yaml

_MODEL = {
    "preset": None,
    "family": "llama",
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "d_model": 16,
    "max_seq_len": 64,
    "dropout": 0.1,
}


def write_config(path: Path, run_dir: Path, corpus: Path, **changes: object) -> Path:
    """Write it: `optim__lr=1` is optim.lr; None leaves a key out, but for model.preset."""
    settings: dict[str, Any] = {
        "run": {"name": run_dir.name, "dir": str(run_dir), "seed": 3},
        "model": dict(_MODEL),
        "data": {"train": str(corpus), "seq_len": 32},
        "batch": {"global_batch_size": 8, "micro_batch_size": 4},
        "steps": 12,
        "optim": {"lr": 1e-2},
        "schedule": {"kind": "wsd", "warmup_steps": 3},
        "precision": "fp32",
        "checkpoint": {"every_steps": 4},
        "evaluate": {"every_steps": 6, "max_sequences": 24},
        "log": {"every_steps": 1},
    }
    for dotted, value in changes.items():
        at = settings
        *parents, last = dotted.split("__")
        for parent in parents:
            at = at.setdefault(parent, {})
        if value is None and last != "preset":
            at.pop(last, None)
        else:
            at[last] = value
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
