"""Named model shapes. Imports no torch."""

import difflib
from typing import Any

from model.config import ModelConfig

Shape = dict[str, Any]


def _gpt2(n_layers: int, n_heads: int, d_model: int, **more: Any) -> Shape:
    shape = {"n_layers": n_layers, "n_heads": n_heads, "d_model": d_model}
    # OpenAI's vocabulary and context (Radford et al. 2019, table 2).
    text = {"vocab_size": 50257, "max_seq_len": 1024, "bos_token_id": 50256, "eos_token_id": 50256}
    return {"family": "gpt2", **text, **shape, **more}


def _llama(
    n_layers: int, n_heads: int, n_kv_heads: int, d_model: int, d_ff: int, **more: Any
) -> Shape:
    shape = {"n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    # Llama 2's vocabulary of 32k where no other is given: small models want small embeddings.
    text = {"vocab_size": 32000, "max_seq_len": 2048, "bos_token_id": 1, "eos_token_id": 2}
    return {"family": "llama", **text, **shape, "d_model": d_model, "d_ff": d_ff, **more}


def _qwen3(
    n_layers: int, n_heads: int, n_kv_heads: int, d_model: int, d_ff: int, **more: Any
) -> Shape:
    # Yang et al. 2025 ("Qwen3 Technical Report"), table 1; heads are 128 wide whatever d_model.
    return {
        "family": "qwen3",
        "vocab_size": 151936,
        "max_seq_len": 40960,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_model": d_model,
        "d_ff": d_ff,
        **more,
    }


def _bert(n_layers: int, d_model: int, **more: Any) -> Shape:
    # Heads are 64 wide in every size (Devlin et al. 2019; Turc et al. 2019 for the small ones).
    shape = {"n_layers": n_layers, "n_heads": d_model // 64, "d_model": d_model}
    text = {"vocab_size": 30522, "max_seq_len": 512, "pad_token_id": 0}
    return {"family": "bert", **text, **shape, "dropout": 0.1, **more}


def _roberta(n_layers: int, n_heads: int, d_model: int) -> Shape:
    # Liu et al. 2019; GPT-2's vocabulary and five special tokens.
    return {
        "family": "roberta",
        "vocab_size": 50265,
        "max_seq_len": 512,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "dropout": 0.1,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "d_model": d_model,
    }


def _modernbert(n_layers: int, n_heads: int, d_model: int, d_ff: int, **more: Any) -> Shape:
    # Warner et al. 2024, table 4.
    return {
        "family": "modernbert",
        "vocab_size": 50368,
        "max_seq_len": 8192,
        "bos_token_id": 50281,
        "eos_token_id": 50282,
        "pad_token_id": 50283,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "d_model": d_model,
        "d_ff": d_ff,
        **more,
    }


_LLAMA3: Shape = {
    "vocab_size": 128256,
    "max_seq_len": 8192,
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def _llama31_scaling(factor: float) -> Shape:
    return {"kind": "llama3", "factor": factor, "original_max_seq_len": 8192}


_LLAMA31: Shape = {**_LLAMA3, "max_seq_len": 131072, "rope_scaling": _llama31_scaling(8.0)}
_LLAMA32: Shape = {
    **_LLAMA31,
    "tie_embeddings": True,
    "rope_scaling": _llama31_scaling(32.0),
}
_LLAMA2: Shape = {"max_seq_len": 4096}
_TINY: Shape = {
    "vocab_size": 8192,
    "max_seq_len": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
_CHINESE: Shape = {"vocab_size": 21128}  # Google's bert-base-chinese: single characters

# Only what a shape fixes: keys that follow from others (head_dim, …) follow overrides too.
PRESETS: dict[str, Shape] = {
    "gpt2-tiny": _gpt2(4, 4, 128, **_TINY),  # 1.9 M parameters
    "gpt2-124m": _gpt2(12, 12, 768),
    "gpt2-355m": _gpt2(24, 16, 1024),
    "gpt2-774m": _gpt2(36, 20, 1280),
    "gpt2-1.5b": _gpt2(48, 25, 1600),
    "llama-tiny": _llama(4, 4, 2, 128, 352, tie_embeddings=True, **_TINY),  # 1.8 M parameters
    "llama-60m": _llama(8, 8, 8, 512, 1376),
    "llama-160m": _llama(12, 12, 12, 768, 2048),
    "llama-410m": _llama(24, 16, 16, 1024, 2816),
    # Llama 3's layers and vocabulary at its context of pretraining, 8,192.
    "llama-1b": _llama(16, 32, 8, 2048, 8192, tie_embeddings=True, **_LLAMA3),
    "llama-3b": _llama(28, 24, 8, 3072, 8192, tie_embeddings=True, **_LLAMA3),
    "llama-8b": _llama(32, 32, 8, 4096, 14336, **_LLAMA3),
    # Meta's released models, number for number.
    "llama-2-7b": _llama(32, 32, 32, 4096, 11008, **_LLAMA2),
    "llama-2-13b": _llama(40, 40, 40, 5120, 13824, **_LLAMA2),
    "llama-2-70b": _llama(80, 64, 8, 8192, 28672, **_LLAMA2),
    "llama-3-8b": _llama(32, 32, 8, 4096, 14336, **_LLAMA3),
    "llama-3-70b": _llama(80, 64, 8, 8192, 28672, **_LLAMA3),
    "llama-3.1-8b": _llama(32, 32, 8, 4096, 14336, **_LLAMA31),
    "llama-3.1-70b": _llama(80, 64, 8, 8192, 28672, **_LLAMA31),
    "llama-3.1-405b": _llama(126, 128, 8, 16384, 53248, **_LLAMA31),
    "llama-3.2-1b": _llama(16, 32, 8, 2048, 8192, **_LLAMA32),
    "llama-3.2-3b": _llama(28, 24, 8, 3072, 8192, **_LLAMA32),
    "qwen3-tiny": _qwen3(4, 4, 2, 128, 352, **_TINY, head_dim=32, rope_theta=10000.0),
    "qwen3-0.6b": _qwen3(28, 16, 8, 1024, 3072),
    "qwen3-1.7b": _qwen3(28, 16, 8, 2048, 6144),
    "qwen3-4b": _qwen3(36, 32, 8, 2560, 9728),
    "qwen3-8b": _qwen3(36, 32, 8, 4096, 12288, tie_embeddings=False),
    "qwen3-14b": _qwen3(40, 40, 8, 5120, 17408, tie_embeddings=False),
    "qwen3-32b": _qwen3(64, 64, 8, 5120, 25600, tie_embeddings=False),
    "bert-tiny": _bert(2, 128),  # 4.4 M parameters, of them 3.9 M embeddings
    "bert-mini": _bert(4, 256),
    "bert-small": _bert(4, 512),
    "bert-medium": _bert(8, 512),
    "bert-base": _bert(12, 768),
    "bert-large": _bert(24, 1024),
    "bert-base-cased": _bert(12, 768, vocab_size=28996),
    "bert-large-cased": _bert(24, 1024, vocab_size=28996),
    "bert-mini-chinese": _bert(4, 256, **_CHINESE),
    "bert-small-chinese": _bert(4, 512, **_CHINESE),
    "bert-base-chinese": _bert(12, 768, **_CHINESE),
    "roberta-base": _roberta(12, 12, 768),
    "roberta-large": _roberta(24, 16, 1024),
    "modernbert-tiny": _modernbert(6, 4, 256, 384, **_TINY, pad_token_id=None),
    "modernbert-base": _modernbert(22, 12, 768, 1152),
    "modernbert-large": _modernbert(28, 16, 1024, 2624),
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
