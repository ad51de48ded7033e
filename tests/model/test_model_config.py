import subprocess
import sys

import pytest
from pydantic import ValidationError

from model.config import FAMILIES, HEADS, TRAITS, ModelConfig, error_line

GPT2 = {
    "family": "gpt2",
    "n_layers": 2,
    "n_heads": 4,
    "d_model": 32,
    "vocab_size": 50,
    "max_seq_len": 16,
}
LLAMA = {**GPT2, "family": "llama"}
BERT = {**GPT2, "family": "bert"}
CUSTOM = {**GPT2, "family": "custom"}


def refusal(values):
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(values)
    line = error_line(caught.value)
    assert "\n" not in line
    return line


def test_family_fills_in_the_rest():
    gpt2, llama = ModelConfig(**GPT2), ModelConfig(**LLAMA)
    assert (gpt2.norm, gpt2.positions, gpt2.mlp, gpt2.bias, gpt2.tie_embeddings) == (
        "layernorm",
        "learned",
        "gelu_tanh",
        True,
        True,
    )
    assert (llama.norm, llama.positions, llama.mlp, llama.bias, llama.tie_embeddings) == (
        "rmsnorm",
        "rotary",
        "swiglu",
        False,
        False,
    )
    assert (gpt2.n_kv_heads, gpt2.head_dim, gpt2.d_ff) == (4, 8, 128)
    assert llama.d_ff == 96  # 8/3 · 32 = 85.3, rounded up to a multiple of 32


def test_none_means_default():
    assert ModelConfig(**{**LLAMA, "n_kv_heads": None, "head_dim": None}) == ModelConfig(**LLAMA)


def test_json_round_trip():
    config = ModelConfig(**LLAMA, eos_token_id=(3, 4), id2label={0: "no", 1: "yes", 2: "maybe"})
    assert config.num_labels == 3
    assert config.eos_token_ids == (3, 4)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_frozen():
    with pytest.raises(ValidationError):
        ModelConfig(**GPT2).n_layers = 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**GPT2, "n_heads": 5}, ["n_heads", "got 5", "d_model=32", "use 4"]),
        ({**LLAMA, "n_kv_heads": 3}, ["n_kv_heads", "got 3", "n_heads=4", "use 2"]),
        ({**LLAMA, "head_dim": 7}, ["head_dim", "got 7", "even", "head_dim=8"]),
        ({**GPT2, "norm": "rmsnorm"}, ["norm", "'rmsnorm'", "'layernorm'", "gpt2"]),
        ({**GPT2, "positions": "rotary"}, ["positions", "'learned'", "gpt2"]),
        ({**GPT2, "mlp": "swiglu"}, ["mlp", "'gelu_tanh'"]),
        ({**GPT2, "bias": False}, ["bias", "got False", "expected True"]),
        ({**GPT2, "n_kv_heads": 2}, ["n_kv_heads", "got 2", "expected 4", "llama"]),
        ({**GPT2, "head_dim": 16}, ["head_dim", "got 16", "expected 8"]),
        ({**LLAMA, "norm": "layernorm"}, ["norm", "'rmsnorm'", "llama"]),
        ({**GPT2, "n_layer": 3}, ["n_layer", "got 3"]),
        ({**GPT2, "family": "mamba"}, ["family", "'gpt2'", "'llama'", "got 'mamba'"]),
        ({**BERT, "n_kv_heads": 2}, ["n_kv_heads", "got 2", "expected 4", "custom"]),
        ({**BERT, "qk_norm": True}, ["qk_norm", "got True", "bert", "custom"]),
        ({**BERT, "tie_embeddings": False}, ["tie_embeddings", "expected True", "custom"]),
        ({**GPT2, "family": "roberta"}, ["pad_token_id: missing", "roberta", "write 1"]),
        ({**GPT2, "family": "modernbert", "sliding_window": 5}, ["even", "use 6"]),
        ({**LLAMA, "sliding_layers": (0,)}, ["sliding_layers", "no sliding_window"]),
        ({**CUSTOM, "sliding_window": 4, "sliding_layers": (2,)}, ["layer 2", "at most 1"]),
        ({**CUSTOM, "sliding_window": 4, "sliding_layers": (1, 0)}, ["rising"]),
        ({**CUSTOM, "norm_bias": True}, ["norm_bias", "rmsnorm"]),
        ({**CUSTOM, "tie_embeddings": True, "mup_base_width": 8}, ["tie_embeddings", "false"]),
        ({**LLAMA, "rope_scaling": {"kind": "llama3", "factor": 2.0}}, ["original_max_seq_len"]),
        ({**GPT2, "n_layers": 0}, ["n_layers", "got 0", "greater than or equal to 1"]),
        ({**GPT2, "dropout": 1.0}, ["dropout", "less than 1"]),
        ({"family": "gpt2"}, ["n_layers", "n_heads", "d_model", "vocab_size", "max_seq_len"]),
        ({**GPT2, "id2label": {0: "a", 2: "b"}}, ["id2label", "0 … 1"]),
        # All at once:
        ({**LLAMA, "n_kv_heads": 3, "head_dim": 7}, ["n_kv_heads", "head_dim"]),
    ],
)
def test_refusals_name_key_got_expected_and_mend(values, words):
    line = refusal(values)
    for word in words:
        assert word in line


def test_every_key_is_described():
    for name, field in ModelConfig.model_fields.items():
        assert field.description, name


def test_every_family_has_traits():
    assert set(TRAITS) == set(FAMILIES)
    for family, traits in TRAITS.items():
        assert set(traits.heads) <= set(HEADS), family
        for key, values in traits.allowed.items():
            assert traits.defaults[key] in values, (family, key)


def test_config_needs_no_torch():
    code = (
        "import sys, model, model.config, model.presets, model.flops, model.hf.config;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
