"""Writes a small model's files under a ZeRO stage; run by test_export_parts.py.

usage: export_worker.py DIR, as ranks; writes DIR/STAGE for each stage, of one and the same model.
Prints a JSON line per rank: the names of the files that it wrote, and the bytes that it held.
"""

import json
import sys
from pathlib import Path

from model import build, preset
from model.hf.directory import ModelFiles
from model.hf.shards import Part
from model.init import parameter_groups
from runtime import dist, sections
from runtime.checkpoint.commit import Attempt
from runtime.checkpoint.snapshot import HostMemory
from runtime.deepspeed_config import deepspeed_config
from runtime.engine import Engine, partitioned_construction
from runtime.errors import leave
from runtime.optim import build_optimizer
from runtime.seed import seed_initialisation
from runtime.selftest import PARTITION_ALL

LIMIT = 20_000  # bytes of a file
SHAPE = {"n_layers": 3, "vocab_size": 100, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 64}


def new_model():
    seed_initialisation(3)
    return build(preset("llama-tiny", **SHAPE))


def main() -> None:
    root = Path(sys.argv[1])
    ranks = dist.init("cpu", 60)
    for stage in (0, 1, 2, 3):
        config = deepspeed_config(
            sections.Parallel(zero_stage=stage),
            "fp32",
            micro_batch_size=1,
            accumulation_steps=1,
            world_size=ranks.world_size,
            max_grad_norm=1.0,
            device_type="cpu",
            extra=PARTITION_ALL if stage == 3 else {},
        )
        with partitioned_construction(config, ranks):
            net = new_model()
        optimizer = build_optimizer(parameter_groups(net, 0.1), sections.Optim())
        engine = Engine(net, optimizer, config, ranks)
        dtype = next(net.parameters()).dtype
        part = Part(ranks.rank, ranks.world_size)
        files = ModelFiles(net.config, net.head, dtype, max_shard_bytes=LIMIT, part=part)
        snapshot = HostMemory().snapshot(engine, files.wanted())
        attempt = Attempt(root / str(stage), 1)
        dist.together(attempt.begin, only_main=True)
        files.write(attempt.directory, snapshot.parameters, attempt.create)
        held = sum(t.nbytes for t in snapshot.parameters.values())
        told = {"rank": ranks.rank, "stage": stage, "held": held, "wrote": list(attempt.entries)}
        print("\n" + json.dumps(told), flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
    leave(0)
