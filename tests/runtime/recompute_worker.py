"""Trains small models that compute activations again; run as ranks by test_recompute.py.

Every ZeRO stage × what is computed again × model, in fp32, three steps of AdamW, against a plain
torch loop over the whole global batch that keeps everything. Prints one JSON line on the main rank:
case → relative differences: the largest of a loss, the largest of a parameter's first gradient, and
that of all master weights at the end.
"""

import json
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from model import ModelConfig, build
from model.heads import Model
from model.init import parameter_groups
from model.transformer import Recompute
from runtime import dist, sections
from runtime.deepspeed_config import deepspeed_config
from runtime.dist import Ranks
from runtime.engine import Engine, partitioned_construction
from runtime.errors import leave
from runtime.optim import build_optimizer
from runtime.seed import seed_initialisation
from runtime.selftest import PARTITION_ALL
from runtime.zero_layout import MASTER

Flat = dict[str, torch.Tensor]  # by parameter, flattened

STEPS, SEQUENCES, SEQ_LEN, VOCAB = 3, 8, 12, 61
OPTIM = sections.Optim(lr=3e-3, max_grad_norm=0.5)
SHAPE: dict[str, Any] = {
    **{"n_layers": 2, "n_heads": 2, "d_model": 16, "vocab_size": VOCAB, "max_seq_len": SEQ_LEN},
    "vocab_multiple": 8,
}
MODELS = {
    "tied": ModelConfig(family="llama", tie_embeddings=True, **SHAPE),
    "untied": ModelConfig(family="llama", tie_embeddings=False, **SHAPE),
    "bert": ModelConfig(family="bert", dropout=0.0, **SHAPE),  # tied
}


def new_net(name: str) -> Model:
    seed_initialisation(5)
    return build(MODELS[name]).train()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, VOCAB, (SEQUENCES, SEQ_LEN), generator=generator)
    return ids, ids.roll(-1, 1)


def loss_of(net: nn.Module, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    loss: torch.Tensor = net(pair[0], targets=pair[1]).loss
    return loss


class Trained(NamedTuple):
    """What a training left."""

    losses: list[float]
    gradients: Flat  # of the first step, clipped, times 1 - beta1: Adam's first moment after it
    weights: Flat


def reference(name: str) -> Trained:
    net, losses, gradients = new_net(name), [], {}
    groups = parameter_groups(net, OPTIM.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=OPTIM.betas, eps=OPTIM.eps)
    for step in range(STEPS):
        loss = loss_of(net, batch(step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), OPTIM.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step == 0:
            state = {n: optimizer.state[p]["exp_avg"] for n, p in net.named_parameters()}
            gradients = {n: t.clone().flatten() for n, t in state.items()}
    return Trained(losses, gradients, {n: p.detach().flatten() for n, p in net.named_parameters()})


def differences(
    name: str, recompute: Recompute, stage: Any, want: Trained, ranks: Ranks
) -> tuple[float, float, float]:
    """Of an engine's training, in two micro-batches a step."""
    local = SEQUENCES // ranks.world_size
    config = deepspeed_config(
        sections.Parallel(zero_stage=stage, activation_checkpointing=recompute),
        "fp32",
        micro_batch_size=local // 2,
        accumulation_steps=2,
        world_size=ranks.world_size,
        max_grad_norm=OPTIM.max_grad_norm,
        device_type="cpu",
        extra=PARTITION_ALL,
    )
    with partitioned_construction(config, ranks):
        net = new_net(name)
    net.trunk.set_recompute(recompute)
    groups = parameter_groups(net, OPTIM.weight_decay)
    engine = Engine(net, build_optimizer(groups, OPTIM), config, ranks)
    losses, gradient, weight = [], 0.0, local / 2 / SEQUENCES
    for step in range(STEPS):
        mine = [torch.split(t[ranks.rank * local :][:local], local // 2) for t in batch(step)]
        result = engine.train_step(
            list(zip(*mine, strict=True)), lambda net, pair: loss_of(net, pair) * weight, OPTIM.lr
        )
        losses.append(result.loss)
        if step == 0:
            squares = squared_differences(engine, "exp_avg", want.gradients)
            gradient = max(squares[n] ** 0.5 / float(t.norm()) for n, t in want.gradients.items())
    loss = max(abs(a - b) / b for a, b in zip(losses, want.losses, strict=True))
    squares = squared_differences(engine, MASTER, want.weights)
    norm = sum(float(t.double().square().sum()) for t in want.weights.values())
    return loss, gradient, (sum(squares.values()) / norm) ** 0.5


def squared_differences(engine: Engine, key: str, want: Flat) -> dict[str, float]:
    """‖ours − reference‖² of each parameter."""
    found = dict.fromkeys(want, 0.0)
    for s in engine.optimizer_slices():
        if s.key == key:
            expected = want[s.parameter][s.start : s.start + s.tensor.numel()]
            found[s.parameter] += float((s.tensor.detach().double() - expected).square().sum())
    return dict(zip(found, dist.sum_over_ranks(list(found.values())), strict=True))


def main() -> None:
    ranks = dist.init("cpu", 60)
    found = {}
    for name in MODELS:
        want = reference(name)
        for recompute in get_args(Recompute):
            for stage in range(4):
                key = f"{name}, {recompute}, ZeRO-{stage}"
                found[key] = differences(name, recompute, stage, want, ranks)
    if ranks.is_main:
        print("\n" + json.dumps(found), flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
    leave(0)
