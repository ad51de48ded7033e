"""Named model shapes. Imports no torch."""

import difflib
from typing import Any

from model.config import ModelConfig


def _gpt2(n_layers: int, n_heads: int, d_model: int, **more: Any) -> dict[str, Any]:
    shape = {"n_layers": n_layers, "n_heads": n_heads, "d_model": d_model}
    # OpenAI's vocabulary and context (Radford et al. 2019, table 2).
    text = {"vocab_size": 50257, "max_seq_len": 1024, "bos_token_id": 50256, "eos_token_id": 50256}
    return {"family": "gpt2", **text, **shape, **more}


def _llama(
    n_layers: int, n_heads: int, n_kv_heads: int, d_model: int, d_ff: int, **more: Any
) -> dict[str, Any]:
    shape = {"n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    # Llama 2's vocabulary of 32k where no other is given: small models want small embeddings.
    text = {"vocab_size": 32000, "max_seq_len": 2048, "bos_token_id": 1, "eos_token_id": 2}
    return {"family": "llama", **text, **shape, "d_model": d_model, "d_ff": d_ff, **more}


_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "max_seq_len": 8192,
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
_TINY: dict[str, Any] = {
    "vocab_size": 8192,
    "max_seq_len": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}

# Only what a shape fixes: keys that follow from others (head_dim, …) follow overrides too.
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-tiny": _gpt2(4, 4, 128, **_TINY),  # 1.9 M parameters
    "gpt2-124m": _gpt2(12, 12, 768),
    "gpt2-355m": _gpt2(24, 16, 1024),
    "gpt2-774m": _gpt2(36, 20, 1280),
    "gpt2-1.5b": _gpt2(48, 25, 1600),
    "llama-tiny": _llama(4, 4, 2, 128, 352, tie_embeddings=True, **_TINY),  # 1.8 M parameters
    "llama-60m": _llama(8, 8, 8, 512, 1376),
    "llama-160m": _llama(12, 12, 12, 768, 2048),
    "llama-410m": _llama(24, 16, 16, 1024, 2816),
    "llama-1b": _llama(
        16, 32, 8, 2048, 8192, tie_embeddings=True, **_LLAMA3
    ),  # shape of Llama-3.2-1B
    "llama-3b": _llama(
        28, 24, 8, 3072, 8192, tie_embeddings=True, **_LLAMA3
    ),  # shape of Llama-3.2-3B
    "llama-8b": _llama(32, 32, 8, 4096, 14336, **_LLAMA3),  # shape of Llama-3-8B
}


def preset(name: str, **overrides: Any) -> ModelConfig:
    """Return the named shape with the overrides applied.

    Raises `ValueError` for an unknown name or an override that does not fit.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"preset: got {name!r}, expected one of {', '.join(PRESETS)}{hint}")
    return ModelConfig.model_validate({**PRESETS[name], **overrides})
