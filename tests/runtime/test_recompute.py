"""Activations that are computed again: what it saves, and that it changes nothing."""

import json
from typing import Any, get_args

import pytest
import torch

from model import ModelConfig, build
from model.transformer import Recompute
from runtime.config import ConfigError, load
from runtime.sections import Parallel
from tests.processes import run

CONFIG = ModelConfig(
    **{"family": "gpt2", "n_layers": 4, "n_heads": 4, "d_model": 64, "vocab_size": 96},
    max_seq_len=64,
    dropout=0.1,
)


def step(recompute: Recompute) -> tuple[int, torch.Tensor, dict[str, torch.Tensor]]:
    """Bytes kept for the backward pass, loss and gradients of one training step."""
    torch.manual_seed(2)
    net = build(CONFIG).train()
    net.trunk.set_recompute(recompute)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, CONFIG.vocab_size, (4, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net(ids, targets=ids).loss
    loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return sum(kept.values()), loss.detach(), gradients


def test_what_is_computed_again_is_not_kept_and_changes_nothing() -> None:
    """With dropout, whose masks must be drawn again as they were."""
    found = {part: step(part) for part in get_args(Recompute)}
    kept = {part: n_bytes for part, (n_bytes, _, _) in found.items()}
    assert kept["none"] > 1.3 * max(kept["attention"], kept["mlp"]), kept
    assert min(kept["attention"], kept["mlp"]) > 2 * kept["block"], kept
    _, loss, gradients = found["none"]
    for part, (_, other_loss, other_gradients) in found.items():
        assert torch.equal(loss, other_loss), part
        assert gradients.keys() == other_gradients.keys()
        for name, gradient in gradients.items():
            assert torch.equal(gradient, other_gradients[name]), (part, name)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_engine_computes_again_what_plain_torch_computes_once(ranks: int) -> None:
    """Every stage × part × model, tied embeddings among them, to a millionth."""
    status, output = run(["tests/runtime/recompute_worker.py"], ranks)
    assert status == 0, output
    found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert len(found) == 4 * 4 * 3
    wrong = {case: values for case, values in found.items() if max(values) > 1e-6}
    assert not wrong


@pytest.mark.parametrize(
    ("written", "meant"), [("true", "block"), ("false", "none"), ("mlp", "mlp"), (None, "none")]
)
def test_a_switch_of_old_configs_is_understood(written: str | None, meant: str) -> None:
    overrides = [] if written is None else [f"activation_checkpointing={written}"]
    config: Any = load(Parallel, None, overrides)
    assert config.activation_checkpointing == meant


def test_an_unknown_part_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'none', 'block', 'attention' or 'mlp'; got 'blocks'"):
        load(Parallel, None, ["activation_checkpointing=blocks"])
