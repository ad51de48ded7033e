"""Small odd models and the means to compare them."""

import random

import torch
import transformers

from model.config import ModelConfig
from model.hf.families import ARCHITECTURES

FAMILIES = ("gpt2", "llama", "qwen3", "bert", "roberta", "modernbert")
CAUSAL = FAMILIES[:3]
BIDIRECTIONAL = FAMILIES[3:]
LM_HEAD = {
    **dict.fromkeys(CAUSAL, "causal_lm"),
    **dict.fromkeys(BIDIRECTIONAL, "masked_lm"),
}


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
    return ModelConfig.model_validate(shape | _more(family, n_heads, shape["n_layers"], draw))


def _scaling(draw: random.Random) -> dict | None:
    kind = draw.choice([None, None, "linear", "llama3", "yarn"])
    if kind is None:
        return None
    scaling = {"kind": kind, "factor": draw.choice([2.0, 8.0])}
    if kind != "linear":
        scaling["original_max_seq_len"] = draw.choice([16, 32])
    if kind == "yarn":
        scaling["attention_factor"] = draw.choice([None, 1.3])
    return scaling


def _more(family: str, n_heads: int, n_layers: int, draw: random.Random) -> dict:
    shape = {}
    if family in ("gpt2", "bert", "roberta"):
        shape["mlp"] = draw.choice(["gelu", "gelu_tanh", "relu", "relu2"])
    else:
        shape["mlp"] = draw.choice(["swiglu", "geglu"])
        shape["rope_theta"] = draw.choice([10000.0, 500.0, 1e6])
        shape["rope_scaling"] = _scaling(draw)
        shape["bias"] = draw.random() < 0.4
    if family in ("llama", "qwen3"):
        shape["n_kv_heads"] = draw.choice([n for n in range(1, n_heads + 1) if n_heads % n == 0])
        shape["head_dim"] = draw.choice([None, 8, 14])
    if family == "llama":
        shape["mlp_bias"] = draw.random() < 0.4
    if family == "qwen3" and draw.random() < 0.6:
        shape["sliding_window"] = draw.choice([3, 6])
        shape["sliding_layers"] = tuple(i for i in range(n_layers) if draw.random() < 0.6) or (0,)
    if family in ("bert", "roberta"):
        shape |= {"tie_embeddings": True, "type_vocab_size": draw.choice([1, 2, 3])}
    if family == "roberta":
        shape["pad_token_id"] = draw.choice([0, 1, 4])
    if family == "modernbert":
        shape |= {
            "rope_theta_local": draw.choice([10000.0, 300.0]),
            "sliding_window": draw.choice([4, 6]),
            "sliding_layers": tuple(i for i in range(n_layers) if draw.random() < 0.6),
            "mlp_bias": draw.random() < 0.5,
            "norm_bias": draw.random() < 0.5,
            "pooling": draw.choice(["first", "mean"]),
            "eos_token_id": draw.choice([None, 7]),
        }
    return shape


def odd_hf_config(family: str, seed: int) -> transformers.PretrainedConfig:
    """The same shapes as transformers' own config object, built without our mapping."""
    c = odd_config(family, seed)
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": c.pad_token_id}
    activation = {"gelu_tanh": "gelu_new", "swiglu": "silu", "geglu": "gelu"}.get(c.mlp, c.mlp)
    if family == "gpt2":
        return transformers.GPT2Config(
            n_layer=c.n_layers, n_head=c.n_heads, n_embd=c.d_model, n_inner=c.d_ff,
            vocab_size=c.vocab_size, n_positions=c.max_seq_len, layer_norm_epsilon=c.norm_eps,
            tie_word_embeddings=c.tie_embeddings, activation_function=activation, **ids,
        )  # fmt: skip
    shape = {
        "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
        "hidden_size": c.d_model, "intermediate_size": c.d_ff, "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_seq_len, "tie_word_embeddings": c.tie_embeddings, **ids,
    }  # fmt: skip
    if family in ("bert", "roberta"):
        kind = transformers.BertConfig if family == "bert" else transformers.RobertaConfig
        if family == "roberta":
            shape["max_position_embeddings"] += c.pad_token_id + 1
        return kind(
            **shape, layer_norm_eps=c.norm_eps, hidden_act=activation,
            type_vocab_size=c.type_vocab_size,
        )  # fmt: skip
    rope = {"rope_type": "default"}
    if c.rope_scaling is not None:
        rope = {"rope_type": c.rope_scaling.kind, "factor": c.rope_scaling.factor}
        if c.rope_scaling.kind != "linear":
            rope["original_max_position_embeddings"] = c.rope_scaling.original_max_seq_len
        if c.rope_scaling.kind == "llama3":
            rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        if c.rope_scaling.attention_factor is not None:
            rope["attention_factor"] = c.rope_scaling.attention_factor
    types = [
        "sliding_attention" if i in c.sliding_layers else "full_attention"
        for i in range(c.n_layers)
    ]
    if family == "modernbert":
        return transformers.ModernBertConfig(
            **shape, norm_eps=c.norm_eps, hidden_activation=activation, norm_bias=c.norm_bias,
            attention_bias=c.bias, mlp_bias=c.mlp_bias, local_attention=c.sliding_window,
            layer_types=types, classifier_pooling="cls" if c.pooling == "first" else "mean",
            rope_parameters={
                "full_attention": {**rope, "rope_theta": c.rope_theta},
                "sliding_attention": {**rope, "rope_theta": c.rope_theta_local},
            },
        )  # fmt: skip
    shape |= {
        "num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim, "rms_norm_eps": c.norm_eps,
        "rope_parameters": {**rope, "rope_theta": c.rope_theta}, "attention_bias": c.bias,
        "hidden_act": activation,
    }  # fmt: skip
    if family == "qwen3":
        return transformers.Qwen3Config(
            **shape, use_sliding_window=bool(c.sliding_layers), sliding_window=c.sliding_window,
            max_window_layers=0, layer_types=types,
        )  # fmt: skip
    return transformers.LlamaConfig(**shape, mlp_bias=c.mlp_bias)


def their_class(family: str, head: str) -> type:
    """The class of transformers that computes what we compute."""
    return getattr(transformers, ARCHITECTURES[family, head])


def scramble(net: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter, norms and biases too, its own large random values."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.normal_(std=0.2)
            if any(word in name.lower() for word in ("norm", "ln_")) and "bias" not in name:
                parameter += 1
    return net


def token_ids(config: ModelConfig, batch_size: int, seq_len: int) -> torch.Tensor:
    """Random tokens; never padding, which some classes treat apart."""
    ids = torch.randint(1, config.vocab_size, (batch_size, seq_len))
    if config.pad_token_id is not None:
        ids[ids == config.pad_token_id] = config.pad_token_id + 1
    return ids


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation as a fraction of the largest expected value."""
    scale = expected.abs().max().clamp(min=1e-30)
    return float(((got.double() - expected.double()).abs().max() / scale).detach())
