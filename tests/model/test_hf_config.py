import json
import logging
from contextlib import suppress

import pytest
from transformers import (
    AutoConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
    RobertaConfig,
)

from model import ModelConfig, preset
from model.hf import (
    CheckpointError,
    from_hf_config,
    read_config,
    to_generation_config,
    to_hf_config,
)
from model.hf.architecture import stored_head
from model.presets import PRESETS
from tests.model.shapes import FAMILIES, odd_config

OTHERS = (BertConfig, RobertaConfig, ModernBertConfig, Qwen3Config)
# As transformers 4 wrote them.
OLD_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 99,
    "rope_theta": 12345.0,
    "rope_scaling": None,
    "pretraining_tp": 1,
    "torch_dtype": "float16",
}
OLD_GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "vocab_size": 99,
    "task_specific_params": {"text-generation": {"do_sample": True}},
    "summary_type": "cls_index",
}


# As Google's bert-base-chinese has it.
OLD_BERT = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "attention_probs_dropout_prob": 0.1,
    "directionality": "bidi",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pooler_fc_size": 768,
    "pooler_type": "first_token_transform",
    "type_vocab_size": 2,
    "vocab_size": 99,
}


@pytest.mark.parametrize("name", PRESETS)
def test_there_and_back(name):
    config = preset(name)
    for head in config.heads:
        assert from_hf_config(to_hf_config(config, head, "float32")) == config


@pytest.mark.parametrize(
    "switches",
    [
        {"positions": "none", "mlp": "relu2", "logit_softcap": 30.0, "qk_norm": True},
        {"causal": False, "norm_place": "post", "sliding_window": 8, "sliding_layers": (0,)},
        {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 16}},
    ],
)
def test_a_custom_model_there_and_back(switches):
    config = preset("llama-tiny", family="custom", eos_token_id=(3, 4), **switches)
    written = json.loads(json.dumps(to_hf_config(config, config.lm_head, "float32")))
    assert written["model_type"] == "ingot"
    assert from_hf_config(written) == config
    with pytest.raises(ValueError, match="ingot"):
        AutoConfig.for_model(**written)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(8))
def test_transformers_reads_every_key(family, seed, tmp_path):
    """What transformers makes of our file, and writes again, is the same model."""
    config = odd_config(family, seed)
    written = to_hf_config(config, config.lm_head, "bfloat16")
    theirs = AutoConfig.for_model(**written)
    again = theirs.to_dict()
    ignored = {"torch_dtype", "rope_theta", "dtype", "rope_scaling"}
    ignored |= {"global_rope_theta", "local_rope_theta"}  # what transformers 4 reads
    for key in written.keys() - ignored:
        assert again[key] == written[key], key
    assert str(theirs.dtype).endswith("bfloat16")
    if config.sliding_layers or family != "qwen3":
        assert from_hf_config(again) == config


def test_old_llama_defaults():
    config, theirs = from_hf_config(OLD_LLAMA), LlamaConfig(**OLD_LLAMA)
    assert config.rope_theta == 12345.0 == theirs.rope_parameters["rope_theta"]
    assert config.norm_eps == theirs.rms_norm_eps
    assert config.n_kv_heads == theirs.num_key_value_heads
    assert config.max_seq_len == theirs.max_position_embeddings
    assert config.tie_embeddings == theirs.tie_word_embeddings
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)


def test_old_gpt2_defaults():
    config, theirs = from_hf_config(OLD_GPT2), GPT2Config(**OLD_GPT2)
    assert config.d_ff == 256
    assert config.max_seq_len == theirs.n_positions
    assert config.norm_eps == theirs.layer_norm_epsilon
    assert config.tie_embeddings == theirs.tie_word_embeddings
    assert config.dropout == theirs.resid_pdrop == 0.1
    assert config.eos_token_id == theirs.eos_token_id


def test_overrides_and_labels():
    raw = {**OLD_LLAMA, "id2label": {"0": "x", "1": "y", "2": "z"}}
    assert from_hf_config(raw).id2label == {0: "x", 1: "y", 2: "z"}
    other = from_hf_config(raw, num_labels=5, dropout=0.2)
    assert (other.num_labels, other.id2label, other.dropout) == (5, None, 0.2)


def test_generation_config():
    config = ModelConfig.model_validate(
        {**preset("llama-tiny").model_dump(), "eos_token_id": (3, 4), "pad_token_id": 0}
    )
    assert to_generation_config(config) == {
        "eos_token_id": [3, 4],
        "pad_token_id": 0,
        "use_cache": True,
    }


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "model_type: got None, supported: gpt2, llama"),
        ({**OLD_LLAMA, "model_type": "mamba"}, "model_type: got 'mamba', supported: gpt2, llama"),
        ({**OLD_LLAMA, "auto_map": {"AutoModel": "x.Y"}}, "auto_map: .* never executed"),
        ({**OLD_LLAMA, "quantization_config": {"bits": 4}}, "quantization_config: .*unquantised"),
        ({**OLD_LLAMA, "hidden_act": "tanh"}, "hidden_act: got 'tanh', supported: silu, swish"),
        (
            {**OLD_LLAMA, "rope_scaling": {"rope_type": "longrope", "factor": 8.0}},
            "rope_scaling: got type 'longrope', supported: default, linear, llama3, yarn",
        ),
        (
            {**OLD_LLAMA, "rope_scaling": {"type": "linear", "factor": "2"}},
            "rope_scaling: factor: .*number",
        ),
        (
            {**OLD_LLAMA, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope_parameters: factor: Field required",
        ),
        (
            {
                **OLD_LLAMA,
                "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
            },
            "rope_parameters: got partial_rotary_factor, supported: rope_theta",
        ),
        ({**OLD_LLAMA, "rope_parameters": [1]}, "rope_parameters: got \\[1\\], expected an object"),
        ({**OLD_LLAMA, "intermediate_size": None}, "intermediate_size: missing"),
        ({**OLD_LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor: got 0.5"),
        (
            {**OLD_LLAMA, "problem_type": "ranking"},
            "problem_type: got 'ranking', supported: single_l",
        ),
        ({**OLD_LLAMA, "num_key_value_heads": 3}, "n_kv_heads: got 3"),
        ({**OLD_LLAMA, "hidden_size": "wide"}, "d_model: .*'wide'"),
        ({**OLD_GPT2, "activation_function": "tanh"}, "activation_function: got 'tanh'"),
        ({**OLD_BERT, "is_decoder": True}, "is_decoder: got True, supported: False"),
        ({**OLD_BERT, "position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({**OLD_BERT, "hidden_act": "silu"}, "hidden_act: got 'silu'"),
        ({**OLD_BERT, "model_type": "roberta", "pad_token_id": None}, "pad_token_id"),
        ({**OLD_BERT, "model_type": "modernbert", "layer_types": ["x"]}, "layer_types: got"),
        ({**OLD_GPT2, "scale_attn_weights": False}, "scale_attn_weights: got False"),
        ({**OLD_GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({**OLD_GPT2, "add_cross_attention": True}, "add_cross_attention: got True"),
        ({**OLD_GPT2, "attn_pdrop": 0.3}, "resid_pdrop, embd_pdrop, attn_pdrop: got 0.1, 0.1, 0.3"),
        ({**OLD_GPT2, "attn_pdrop": "high"}, "attn_pdrop"),
        ({**OLD_GPT2, "id2label": ["a"]}, "id2label: got \\['a'\\], expected an object"),
        ({**OLD_GPT2, "n_embd": None}, "n_embd: missing"),
        ({**OLD_GPT2, "n_embd": "64"}, "d_model: .*integer.*'64'"),
        ({**OLD_GPT2, "n_layer": True}, "n_layers: .*integer.*True"),
        ({**OLD_GPT2, "vocab_size": 99.0}, "vocab_size: .*integer.*99.0"),
        ({**OLD_LLAMA, "attention_bias": "false", "mlp_bias": "false"}, "bias: .*boolean.*'false'"),
        ({**OLD_LLAMA, "rms_norm_eps": "1e-5"}, "norm_eps: .*number.*'1e-5'"),
        ({**OLD_GPT2, "n_layer": 10**30}, "n_layers: .*less than or equal to 10000"),
        (
            {**OLD_BERT, "model_type": "modernbert", "global_attn_every_n_layers": 0},
            "global_attn_every_n_layers: got 0, expected a number from 1 to",
        ),
        ({**OLD_LLAMA, "model_type": ["llama"]}, "model_type: got \\['llama'\\]"),
        ({**OLD_GPT2, "id2label": {"x": "a"}}, "id2label: .* expected numbers as keys"),
    ],
)
def test_refusals(raw, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        from_hf_config(raw)
    assert "\n" not in str(caught.value)


WRONG = [None, -1, 1.5, 10**30, True, "x", [], ["x"], {}, {"a": 1}, {"rope_type": [1]}]


@pytest.mark.parametrize("raw", [OLD_LLAMA, OLD_GPT2, OLD_BERT], ids=lambda r: r["model_type"])
@pytest.mark.parametrize("family", [None, "qwen3", "roberta", "modernbert"])
def test_a_value_of_any_type_is_read_or_refused(raw, family, tmp_path):
    """Whatever stands in a file that someone else wrote: never another error, never a long wait."""
    raw = {**raw, "use_sliding_window": True, "sliding_window": 8}
    raw |= {} if family is None else {"model_type": family}
    more = ("max_window_layers", "global_attn_every_n_layers", "layer_types", "rope_parameters")
    for key in (*raw, *more, "id2label", "classifier_pooling", "pad_token_id"):
        for value in WRONG:
            (tmp_path / "config.json").write_text(json.dumps({**raw, key: value}))
            with suppress(CheckpointError):
                stored_head(tmp_path, read_config(tmp_path))


def test_unknown_keys_are_mentioned(caplog):
    with caplog.at_level(logging.WARNING):
        from_hf_config({**OLD_LLAMA, "residual_multiplier": 2.0, "_name_or_path": "x"})
    assert "residual_multiplier" in caplog.text
    assert "_name_or_path" not in caplog.text


def test_known_files_mention_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        for kind in (GPT2Config, LlamaConfig, *OTHERS):
            from_hf_config(kind().to_dict())
        from_hf_config(OLD_BERT)
        from_hf_config(OLD_LLAMA)
        from_hf_config(OLD_GPT2)
    assert not caplog.records
