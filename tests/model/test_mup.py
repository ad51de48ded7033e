"""Maximal update parametrisation: what the width does to activations and to groups."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from model import build, preset
from model.config import ModelConfig
from model.init import parameter_groups
from runtime.optim import build_optimizer
from runtime.sections import Optim

WIDTHS = (64, 128, 256, 512, 1024)
BASE = 64


def model_of(width: int, *, mup: bool, **more: Any) -> ModelConfig:
    shape = {
        "family": "llama",
        "n_layers": 2,
        "n_heads": width // 32,  # heads stay 32 wide, so that attention's 1/√head_dim stays too
        "d_model": width,
        "d_ff": 2 * width,
        "vocab_size": 64,
        "max_seq_len": 32,
        "tie_embeddings": False,
        "init_std": 0.05,
        "mup_base_width": BASE if mup else None,
    }
    return ModelConfig.model_validate(shape | more)


def activations_after_training(
    config: ModelConfig, steps: int = 6, name: Any = "adamw"
) -> dict[str, float]:
    """Mean size of hidden states and logits after some steps of Adam, or of Muon."""
    torch.manual_seed(0)
    net = build(config, None if config.causal else "pretraining")
    ids = torch.randint(0, config.vocab_size, (8, 32))
    more = {} if config.causal else {"pair_labels": torch.arange(8) % 2}
    groups = parameter_groups(net, 0.0, muon=name == "muon")
    # Muon's updates are small by design; with this they outgrow what the weights began with.
    lr = 0.1 if name == "muon" else 0.01
    optimizer = build_optimizer(groups, Optim(name=name, lr=lr, betas=(0.9, 0.999)))
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    for _ in range(steps):
        optimizer.zero_grad()
        net(ids, labels=ids, **more).loss.backward()
        optimizer.step()
    sizes: dict[str, float] = {}

    def keep(name: str):
        def hook(_: nn.Module, __: object, out: torch.Tensor) -> None:
            sizes[name] = out.abs().mean().item()

        return hook

    for number, block in enumerate(net.trunk.blocks):
        block.register_forward_hook(keep(f"block {number}"))
        block.attention.register_forward_hook(keep(f"attention {number}"))
        block.mlp.register_forward_hook(keep(f"mlp {number}"))
    for name, module in net.named_modules():
        if name in ("transform.dense", "pooler.dense", "pair_score"):
            module.register_forward_hook(keep(name))
    sizes["logits"] = net(ids).logits.abs().mean().item()
    return sizes


def slopes(*, mup: bool, steps: int = 6, name: str = "adamw", **more: Any) -> dict[str, float]:
    """Growth of each activation with the width: the exponent p of width^p."""
    widths = WIDTHS if name == "adamw" else WIDTHS[:4]  # a step of Muon costs width³
    configs = [model_of(width, mup=mup, **more) for width in widths]
    found = [activations_after_training(config, steps, name) for config in configs]
    x = torch.tensor([math.log(width) for width in widths])
    x = x - x.mean()
    result = {}
    for name in found[0]:
        y = torch.tensor([math.log(sizes[name]) for sizes in found])
        result[name] = float((x * y).sum() / (x * x).sum())
    return result


def test_coordinate_check():
    """Flat over a 16-fold width with muP (Yang et al. 2022, appendix D.1); growing without."""
    with_mup, without = slopes(mup=True), slopes(mup=False)
    assert all(abs(slope) < 0.2 for slope in with_mup.values()), with_mup
    assert without["logits"] > 0.4, without
    assert without["block 1"] > 0.4, without


def test_coordinate_check_of_muon():
    """Orthogonal updates grow with the root of the width, so muP slows them by that root."""
    with_mup, without = (slopes(mup=mup, name="muon", steps=4) for mup in (True, False))
    assert all(abs(slope) < 0.25 for slope in with_mup.values()), with_mup
    assert without["block 1"] > 0.4, without


def test_coordinate_check_of_the_pretraining_head():
    """BERT's transform and pooler are as wide as the model, and its pair score reads them."""
    # Few steps: with eight pairs alone, what is learnt by heart soon outgrows the trend.
    shape = {"family": "custom", "causal": False, "steps": 2}
    with_mup, without = slopes(mup=True, **shape), slopes(mup=False, **shape)
    for name in ("transform.dense", "pooler.dense", "pair_score"):
        assert abs(with_mup[name]) < 0.25, with_mup
        assert without[name] > 0.4, without


def test_groups_and_initial_scales():
    config = model_of(256, mup=True)
    net = build(config)
    groups = {group["name"]: group for group in parameter_groups(net, 0.1)}
    assert {name: group["lr_scale"] for name, group in groups.items()} == {
        "decay": 1.0,
        "decay_wide": 0.25,
        "no_decay": 1.0,
    }
    assert groups["decay_wide"]["weight_decay"] == pytest.approx(0.4)
    muon = parameter_groups(net, 0.1, muon=True)[0]
    assert (muon["name"], muon["lr_scale"], muon["weight_decay"]) == ("muon", 0.5, 0.2)
    [embedding] = groups["decay"]["params"]
    assert embedding is net.trunk.token_embedding.weight
    assert any(p is net.unembedding.weight for p in groups["decay_wide"]["params"])
    assert embedding.std().item() == pytest.approx(0.05, rel=0.05)
    assert net.trunk.blocks[0].mlp.down.weight.std().item() == pytest.approx(0.025, rel=0.05)
    assert not net.unembedding.weight.any()


def test_the_base_width_changes_nothing():
    plain, based = (model_of(64, mup=mup) for mup in (False, True))
    nets = []
    for config in (plain, based):
        torch.manual_seed(1)
        nets.append(build(config))
    for first, second in zip(*(net.trunk.parameters() for net in nets), strict=True):
        assert torch.equal(first, second)
    assert [g["name"] for g in parameter_groups(nets[1], 0.1)] == ["decay", "no_decay"]


def test_a_preset_takes_it():
    config = preset("llama-tiny", d_model=256, mup_base_width=128, tie_embeddings=False)
    assert config.width_ratio == 2
