"""Small model directories, and what is in them."""

import pytest
import torch
from safetensors.torch import load_file

from model import build, save_pretrained
from model.hf import CheckpointError
from tests.model.shapes import LM_HEAD, odd_config, scramble


def saved(path, family="llama", head=None, seed=1, **options):
    net = scramble(build(odd_config(family, seed), head or LM_HEAD[family]).eval())
    save_pretrained(net, path, **options)
    return net


def stored(path):
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same_tensors(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8)), name


def refusal(function, *arguments, **options):
    with pytest.raises(CheckpointError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
