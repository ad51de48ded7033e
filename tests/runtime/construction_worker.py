"""Builds a model under ZeRO; run as ranks by test_construction.py.

usage: construction_worker.py memory parts|whole   how much memory each rank takes at the highest
       construction_worker.py weights PRECISION    how far each stage's first weights are from ours
Prints one JSON line, of each rank (memory) or of the main rank (weights).
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from model import ModelConfig, build
from model.init import parameter_groups
from runtime import dist, sections
from runtime.deepspeed_config import deepspeed_config
from runtime.dist import Ranks
from runtime.engine import DTYPES, Engine, partitioned_construction
from runtime.errors import leave
from runtime.optim import build_optimizer
from runtime.seed import seed_initialisation
from runtime.zero_layout import MASTER

# A quarter of LLaMA-7B's width: 337 MB in fp32, a twentieth of it in the largest matrix.
WIDE = ModelConfig(
    family="llama", n_layers=6, n_heads=16, d_model=1024, d_ff=2752, vocab_size=4096, max_seq_len=64
)
SHAPE: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "d_model": 64, "max_seq_len": 64}
# Rows that only fill up; an output matrix of its own in one, truncated draws in the other.
SMALL = ModelConfig(family="llama", vocab_size=501, vocab_multiple=64, **SHAPE)
SMALL_BERT = ModelConfig(family="bert", vocab_size=501, vocab_multiple=64, **SHAPE)


def settings(stage: Any, precision: Any, ranks: Ranks) -> dict[str, Any]:
    return deepspeed_config(
        sections.Parallel(zero_stage=stage),
        precision,
        micro_batch_size=1,
        accumulation_steps=1,
        world_size=ranks.world_size,
        max_grad_norm=1.0,
        device_type="cpu",
    )


def resident(name: str) -> int:
    """Bytes of this process: VmRSS those now, VmHWM the most that there ever were."""
    # Not getrusage: its peak counts what the parent had when it started this process.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure_memory(ranks: Ranks, *, in_parts: bool) -> None:
    config = settings(3, "fp32", ranks)
    with partitioned_construction(config, ranks):
        build(SMALL)  # what is imported or allocated once is there
    before = resident("VmRSS")
    with partitioned_construction(config, ranks) if in_parts else contextlib.nullcontext():
        net = build(WIDE)
    found = {
        "whole": sum(4 * getattr(p, "ds_numel", p.numel()) for p in net.parameters()),
        "held": sum(getattr(p, "ds_tensor", p).nbytes for p in net.parameters()),
        "peak": resident("VmHWM") - before,
    }
    print("\n" + json.dumps(found), flush=True)


def largest_difference(model: ModelConfig, stage: int, precision: str, ranks: Ranks) -> float:
    """Between the model's and the master weights of an engine, and those of a plain model."""
    seed_initialisation(3)
    want = {n: p.detach().to(DTYPES[precision]) for n, p in build(model).named_parameters()}
    config = settings(stage, precision, ranks)
    seed_initialisation(3)
    with partitioned_construction(config, ranks):
        net = build(model)
    groups = parameter_groups(net, 0.1)
    engine = Engine(net, build_optimizer(groups, sections.Optim()), config, ranks)
    found, n_masters = [0.0], 0
    for name, tensor in engine.full_parameters(want if ranks.is_main else ()):
        assert tensor.dtype == want[name].dtype
        found.append(float((tensor - want[name]).abs().max()))
    for name, key, start, tensor in engine.optimizer_slices():
        if key == MASTER:
            expected = want[name].flatten()[start : start + tensor.numel()].float()
            found.append(float((tensor.detach() - expected).abs().max()))
            n_masters += tensor.numel()
    assert dist.sum_over_ranks([n_masters]) == [sum(p.numel() for p in want.values())]
    return max(float(text) for text in dist.gather_text(str(max(found))))


def main() -> None:
    ranks = dist.init("cpu", 60)
    if sys.argv[1] == "memory":
        measure_memory(ranks, in_parts=sys.argv[2] == "parts")
    else:
        precision = sys.argv[2]
        stages = (0, 1, 2, 3) if precision == "fp32" else (1, 2, 3)
        found = {
            f"{model.family} {stage}": largest_difference(model, stage, precision, ranks)
            for model in (SMALL, SMALL_BERT)
            for stage in stages
        }
        if ranks.is_main:
            print("\n" + json.dumps(found), flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
    leave(0)
