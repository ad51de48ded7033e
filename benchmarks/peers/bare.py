"""Our model in the loop that a person would write, without DeepSpeed."""

from typing import Any

import torch

from benchmarks.peers.orders import Orders
from benchmarks.peers.shapes import BETAS, LR, MAX_GRAD_NORM, WEIGHT_DECAY, Work
from model import build
from model.init import parameter_groups
from runtime import heap
from runtime.optim import build_optimizer
from runtime.sections import Optim
from runtime.seed import seed_initialisation

OPTIM = Optim(lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM)


def loop(work: Work, options: dict[str, Any], orders: Orders, device: torch.device) -> None:
    """Step with fp32 masters, clipping, and fused AdamW."""
    if device.type == "cpu":
        heap.keep()  # as the engine's processes do: the difference is the engine's
    orders.imported(compiles=options["compile"])
    seed_initialisation(0)
    net = build(work.config()).to(device)
    net.trunk.splits_documents = not options["compile"]
    if options["compile"]:
        for block in net.trunk.blocks:
            block.forward = torch.compile(block.forward)
        net.compiles_loss = True
    groups = parameter_groups(net, WEIGHT_DECAY)
    is_mixed = options["precision"] != "fp32"
    masters = {p: p.detach().clone() for p in net.parameters()} if is_mixed else {}
    if is_mixed:
        for group in groups:
            group["params"] = [masters[p] for p in group["params"]]
        net.to(torch.bfloat16)
    optimizer = build_optimizer(groups, OPTIM)
    updated = list(masters.values()) if is_mixed else list(net.parameters())
    number = 0
    orders.ready()
    while orders.wanted():
        inputs, targets = work.batch(number, device)
        loss = net(inputs, targets=targets).loss
        loss.backward()
        if is_mixed:
            for low, high in masters.items():
                high.grad, low.grad = low.grad.float(), None
        torch.nn.utils.clip_grad_norm_(updated, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if is_mixed:
            with torch.no_grad():
                torch._foreach_copy_(list(masters), updated)
        number += 1
        orders.done(loss.detach())
