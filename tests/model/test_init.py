import math

import pytest
import torch

from model import build, preset
from model.init import initialise, parameter_groups


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_statistics(family):
    config = preset(f"{family}-tiny", init_std=0.03, tie_embeddings=False)
    residual = 0.03 / math.sqrt(2 * config.n_layers) if family == "gpt2" else 0.03
    for name, parameter in build(config).named_parameters():
        if parameter.dim() >= 2:
            is_residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
            expected = residual if is_residual else 0.03
            # A sample's deviation has a relative error of 1/√(2n).
            error = 6 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(expected, rel=error), name
            assert abs(parameter.mean().item()) < 6 * expected / math.sqrt(parameter.numel())
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert (parameter == 1).all(), name


def test_same_seed_same_weights():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build("llama-tiny").state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(
        states[0]["trunk.token_embedding.weight"], states[2]["trunk.token_embedding.weight"]
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_meta_construction_then_initialise_equals_build(family):
    torch.manual_seed(5)
    built = build(f"{family}-tiny")
    with torch.device("meta"):
        net = build(f"{family}-tiny")
    assert all(p.is_meta for p in net.parameters())
    net.to_empty(device="cpu")
    torch.manual_seed(5)
    initialise(net)
    for name, parameter in built.named_parameters():
        assert torch.equal(parameter, net.get_parameter(name)), name
    ids = torch.arange(8)[None]
    assert torch.equal(built.eval()(ids).logits, net.eval()(ids).logits)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_first_loss_is_that_of_a_uniform_guess(family):
    net = build(f"{family}-tiny")
    ids = torch.randint(0, net.config.vocab_size, (4, 64))
    assert net(ids, labels=ids).loss.item() == pytest.approx(math.log(8192), abs=0.1)


def test_parameter_groups():
    net = build("gpt2-tiny")
    decay, rest = parameter_groups(net, 0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() >= 2 for p in decay["params"])
    assert all(p.dim() == 1 for p in rest["params"])
    assert any(p is net.trunk.token_embedding.weight for p in decay["params"])
    grouped = {id(p) for group in (decay, rest) for p in group["params"]}
    assert grouped == {id(p) for p in net.parameters()}
    assert len(decay["params"]) + len(rest["params"]) == len(grouped)


def test_frozen_parameters_are_in_no_group():
    net = build("llama-tiny")
    net.trunk.requires_grad_(False)
    assert parameter_groups(net, 0.1) == []
