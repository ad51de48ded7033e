"""Trains a model with kernels under ZeRO-3; run as ranks by test_zero.py, in the interpreter.

The case of recompute_worker with every parameter partitioned, on a model that has all kernels.
Prints one JSON line on the main rank: what is computed again → differences from plain torch.
"""

import json
from typing import get_args

from model import ModelConfig
from model.heads import Model
from model.transformer import Recompute
from runtime import dist
from runtime.errors import leave
from tests.runtime import recompute_worker as worker


def main() -> None:
    ranks = dist.init("cpu", 60)
    worker.STEPS, worker.SEQUENCES, worker.SEQ_LEN = 2, 4, 4  # each row costs the interpreter time
    shape = {**worker.SHAPE, "n_layers": 1, "head_dim": 8, "n_kv_heads": 1}
    worker.MODELS["qwen3"] = ModelConfig(family="qwen3", tie_embeddings=True, **shape)
    want = worker.reference("qwen3")
    plain = worker.new_net

    def fused(name: str) -> Model:
        net = plain(name)
        net.set_kernels("triton")
        return net

    worker.new_net = fused
    found = {
        part: worker.differences("qwen3", part, 3, want, ranks) for part in get_args(Recompute)
    }
    if ranks.is_main:
        print("\n" + json.dumps(found), flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
    leave(0)
