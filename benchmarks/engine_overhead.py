"""What the DeepSpeed engine adds to a step on one process, against a bare PyTorch loop.

Both train the same model on the same batches in the same precision, in turns of a few steps, so
that a machine that slows down slows both. Prints the median of each turn's ratio; --json writes it.

    python benchmarks/engine_overhead.py [--preset llama-tiny] [--precision fp32] [--turns 15]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from model import build, preset
from model.init import parameter_groups
from runtime import dist, provenance, sections
from runtime.deepspeed_config import deepspeed_config
from runtime.engine import DTYPES, Engine
from runtime.optim import build_optimizer

OPTIM = sections.Optim()


def batch(options: argparse.Namespace, device: torch.device) -> dict[str, torch.Tensor]:
    """Random tokens and their targets, (B, T) each."""
    ids = torch.randint(0, 8192, (options.batch_size, options.seq_len + 1), device=device)
    return {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}


def bare_step(options: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """The loop that a person would write: bf16 weights with fp32 masters, clip, fused AdamW."""
    net = build(preset(options.preset)).to(device)
    master = [p.detach().clone() for p in net.parameters()]
    net.to(DTYPES[options.precision])
    names = {id(p): i for i, p in enumerate(net.parameters())}
    is_mixed = options.precision != "fp32"
    groups = parameter_groups(net, OPTIM.weight_decay)
    if is_mixed:
        for group in groups:
            group["params"] = [master[names[id(p)]] for p in group["params"]]
    optimizer = build_optimizer(groups, OPTIM)
    parameters = list(net.parameters())

    def step() -> None:
        loss = net(**batch(options, device)).loss
        loss.backward()
        if is_mixed:
            for low, high in zip(parameters, master, strict=True):
                high.grad, low.grad = low.grad.float(), None
        torch.nn.utils.clip_grad_norm_(master if is_mixed else parameters, OPTIM.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if is_mixed:
            with torch.no_grad():
                torch._foreach_copy_(parameters, master)
        float(loss.detach())

    return step


def engine_step(options: argparse.Namespace, ranks: dist.Ranks) -> Callable[[], None]:
    """The same step through our engine."""
    net = build(preset(options.preset)).to(ranks.device)
    config = deepspeed_config(
        sections.Parallel(zero_stage=options.zero_stage),
        options.precision,
        micro_batch_size=options.batch_size,
        accumulation_steps=1,
        world_size=1,
        max_grad_norm=OPTIM.max_grad_norm,
        device_type=ranks.device.type,
    )
    optimizer = build_optimizer(parameter_groups(net, OPTIM.weight_decay), OPTIM)
    engine = Engine(net, optimizer, config, ranks)

    def step() -> None:
        engine.train_step(
            [batch(options, ranks.device)], lambda module, b: module(**b).loss, OPTIM.lr
        )

    return step


def timed(step: Callable[[], None], count: int, device: torch.device) -> float:
    """Seconds per step over `count` steps."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama-tiny")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ranks = dist.init("auto", timeout_s=60)
    torch.manual_seed(0)
    bare, ours = bare_step(options, ranks.device), engine_step(options, ranks)
    timed(bare, 2, ranks.device), timed(ours, 2, ranks.device)  # warm up
    pairs = [
        (timed(bare, options.steps, ranks.device), timed(ours, options.steps, ranks.device))
        for _ in range(options.turns)
    ]
    result = {
        "preset": options.preset,
        "precision": options.precision,
        "zero_stage": options.zero_stage,
        "tokens_per_step": options.batch_size * options.seq_len,
        "bare_ms": round(statistics.median(b for b, _ in pairs) * 1e3, 2),
        "engine_ms": round(statistics.median(e for _, e in pairs) * 1e3, 2),
        "ratio_median": round(statistics.median(e / b for b, e in pairs), 3),
        "ratio_min_over_min": round(min(e for _, e in pairs) / min(b for b, _ in pairs), 3),
        "threads": torch.get_num_threads(),
        "versions": provenance.versions(),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    dist.shutdown()


if __name__ == "__main__":
    main()
