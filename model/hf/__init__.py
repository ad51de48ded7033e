"""Hugging Face directories, both ways. The only place that knows Hugging Face's names.

`config` maps config.json and imports no torch, `state` maps tensors, `directory` reads and writes.
`transformers` itself is never imported, so no checkpoint can make it run code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.hf.config import CheckpointError as CheckpointError
    from model.hf.config import from_hf_config as from_hf_config
    from model.hf.config import read_config as read_config
    from model.hf.config import to_generation_config as to_generation_config
    from model.hf.config import to_hf_config as to_hf_config
    from model.hf.directory import load_pretrained as load_pretrained
    from model.hf.directory import save_pretrained as save_pretrained
    from model.hf.state import from_hf_state as from_hf_state
    from model.hf.state import to_hf_state as to_hf_state

_HOMES = {
    "CheckpointError": "model.hf.config",
    "from_hf_config": "model.hf.config",
    "from_hf_state": "model.hf.state",
    "load_pretrained": "model.hf.directory",
    "read_config": "model.hf.config",
    "save_pretrained": "model.hf.directory",
    "to_generation_config": "model.hf.config",
    "to_hf_config": "model.hf.config",
    "to_hf_state": "model.hf.state",
}

__all__ = [
    "CheckpointError",
    "from_hf_config",
    "from_hf_state",
    "load_pretrained",
    "read_config",
    "save_pretrained",
    "to_generation_config",
    "to_hf_config",
    "to_hf_state",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'model.hf' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
