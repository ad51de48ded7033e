import pytest
import torch

from model import build, preset
from model.flops import parameters
from model.presets import PRESETS

# Published sizes, in millions of parameters.
SIZES = {
    "gpt2-124m": 124.4,
    "gpt2-355m": 354.8,
    "gpt2-774m": 774.0,
    "gpt2-1.5b": 1557.6,
    "llama-1b": 1235.8,
    "llama-3b": 3212.7,
    "llama-8b": 8030.3,
    "llama-2-7b": 6738.4,
    "llama-2-13b": 13015.9,
    "llama-2-70b": 68976.6,
    "llama-3.1-405b": 405853.4,
    "llama-3.2-1b": 1235.8,
    "qwen3-0.6b": 596.0,
    "qwen3-8b": 8190.7,
    "qwen3-32b": 32762.1,
    # With the transform and bias of the masked-LM head, as released.
    "bert-tiny": 4.4,
    "bert-mini": 11.2,
    "bert-base": 109.5,
    "bert-large": 335.2,
    "bert-base-chinese": 102.3,
    "roberta-base": 124.7,
    "roberta-large": 355.4,
    "modernbert-base": 149.7,
    "modernbert-large": 395.9,
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds_and_counts(name):
    with torch.device("meta"):
        net = build(name)
    head = net.head
    count = sum(p.numel() for p in net.parameters())
    assert count == parameters(preset(name), head)
    if name in SIZES:
        assert count / 1e6 == pytest.approx(SIZES[name], abs=0.1)
    if name.endswith("-tiny"):
        assert 1e6 < count < 7e6


def test_overrides():
    config = preset("llama-tiny", n_heads=8, d_model=256)
    assert (config.n_heads, config.d_model, config.head_dim) == (8, 256, 32)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'gpt2-124m'"):
        preset("gpt2-124")
    with pytest.raises(ValueError, match=r"expected one of gpt2-tiny"):
        preset("???")


def test_unknown_override():
    with pytest.raises(ValueError, match="hidden_size"):
        preset("gpt2-tiny", hidden_size=3)
