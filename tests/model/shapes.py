"""Small odd models and the means to compare them."""

import random

import torch
from transformers import GPT2Config, LlamaConfig

from model.config import ModelConfig


def odd_config(family: str, seed: int) -> ModelConfig:
    """A small random shape with nothing round about it."""
    draw = random.Random(f"{family}-{seed}")
    n_heads = draw.choice([1, 2, 3, 4, 6])
    # A norm over fewer than a dozen numbers amplifies fp32 rounding beyond what is compared.
    head_dim = draw.choice([6, 10, 16] if n_heads > 2 else [14, 22])
    shape = {
        "family": family,
        "n_layers": draw.randint(1, 3),
        "n_heads": n_heads,
        "d_model": n_heads * head_dim,
        "d_ff": draw.choice([17, 40, 63]),
        "vocab_size": draw.choice([31, 101, 257]),
        "max_seq_len": draw.choice([33, 64]),
        "norm_eps": draw.choice([1e-5, 1e-6]),
        "tie_embeddings": draw.random() < 0.5,
        "eos_token_id": draw.choice([None, 7, (3, 5)]),
        "pad_token_id": draw.choice([None, 0]),
    }
    if family == "llama":
        shape |= {
            "n_kv_heads": draw.choice([n for n in range(1, n_heads + 1) if n_heads % n == 0]),
            "head_dim": draw.choice([None, 8, 14]),
            "rope_theta": draw.choice([10000.0, 500.0, 1e6]),
            "bias": draw.random() < 0.3,
        }
    return ModelConfig.model_validate(shape)


def odd_hf_config(family: str, seed: int) -> GPT2Config | LlamaConfig:
    """The same shapes as transformers' own config object, built without our mapping."""
    c = odd_config(family, seed)
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": c.pad_token_id}
    if family == "gpt2":
        return GPT2Config(
            n_layer=c.n_layers, n_head=c.n_heads, n_embd=c.d_model, n_inner=c.d_ff,
            vocab_size=c.vocab_size, n_positions=c.max_seq_len, layer_norm_epsilon=c.norm_eps,
            tie_word_embeddings=c.tie_embeddings, **ids,
        )  # fmt: skip
    return LlamaConfig(
        num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads, hidden_size=c.d_model,
        num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim, intermediate_size=c.d_ff,
        vocab_size=c.vocab_size, max_position_embeddings=c.max_seq_len, rms_norm_eps=c.norm_eps,
        rope_theta=c.rope_theta, attention_bias=c.bias, mlp_bias=c.bias,
        tie_word_embeddings=c.tie_embeddings, **ids,
    )  # fmt: skip


def scramble(net: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter, norms and biases too, its own large random values."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.normal_(std=0.2)
            if "norm" in name or "ln_" in name:
                parameter += 1
    return net


def token_ids(config: ModelConfig, batch_size: int, seq_len: int) -> torch.Tensor:
    return torch.randint(1, config.vocab_size, (batch_size, seq_len))


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation as a fraction of the largest expected value."""
    scale = expected.abs().max().clamp(min=1e-30)
    return float(((got.double() - expected.double()).abs().max() / scale).detach())
