"""The Transformer, its heads and losses, presets, Hugging Face mapping and generation.

Names are imported when first used, so `import model.config` stays free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.config import ModelConfig as ModelConfig
    from model.heads import build as build
    from model.hf.directory import load_pretrained as load_pretrained
    from model.hf.directory import save_pretrained as save_pretrained
    from model.presets import preset as preset

_HOMES = {
    "ModelConfig": "model.config",
    "build": "model.heads",
    "load_pretrained": "model.hf.directory",
    "preset": "model.presets",
    "save_pretrained": "model.hf.directory",
}

__all__ = ["ModelConfig", "build", "load_pretrained", "preset", "save_pretrained"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
