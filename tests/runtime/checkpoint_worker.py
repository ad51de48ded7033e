"""Trains a small network, saves, or goes on from a save; run as ranks by test_checkpoint.py.

usage: checkpoint_worker.py DIR STAGE PRECISION FIRST_STEP LAST_STEP [DEEPSPEED_DIR]
DEEPSPEED_DIR: where DeepSpeed saves the same state in its own way.
Prints one JSON line on the main rank: the losses of the steps, and sha256 of weights and moments.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save

from runtime import dist, sections
from runtime.checkpoint import newest_verified
from runtime.checkpoint.reader import TrainingState
from runtime.checkpoint.saver import Saver
from runtime.deepspeed_config import deepspeed_config
from runtime.engine import Engine, partitioned_construction
from runtime.errors import leave
from runtime.optim import build_optimizer
from runtime.selftest import _OPTIM, SEQUENCES, _batch, _groups, _loss, _new_net


class Weights:
    """One file, of the main rank."""

    def __init__(self, net, ranks):
        self._names = [name for name, _ in net.named_parameters()] if ranks.is_main else []

    def wanted(self):
        return self._names

    def write(self, directory, parameters, create):
        if self._names:
            assert list(parameters) == self._names
            with create(directory / "weights.safetensors") as file:
                file.write(save({k: v.contiguous() for k, v in parameters.items()}))


def main() -> None:
    root, stage, precision = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    first, last = int(sys.argv[4]), int(sys.argv[5])
    ranks = dist.init("cpu", 60)
    local = SEQUENCES // ranks.world_size
    config = deepspeed_config(
        sections.Parallel(zero_stage=stage),
        precision,
        micro_batch_size=local // 2,
        accumulation_steps=2,
        world_size=ranks.world_size,
        max_grad_norm=1.0,
        device_type="cpu",
    )
    with partitioned_construction(config, ranks):
        net = _new_net(precision)  # at a resume too: the slices are all that is read
    engine = Engine(net, build_optimizer(_groups(net), _OPTIM), config, ranks)
    if first:
        found = newest_verified(root)
        assert found is not None
        assert found.step == first
        state = TrainingState(found.path)
        engine.load_optimizer_slices(state.read, state.values["optimizer_steps"])
    weight = local / 2 / SEQUENCES
    losses = []
    for step in range(first, last):
        mine = torch.split(_batch(step)[ranks.rank * local :][:local], local // 2)
        result = engine.train_step(mine, lambda m, ids: _loss(m, ids) * weight, 1e-2)
        losses.append(result.loss)
    settings = sections.Checkpoint(background=stage != 2)
    saver = Saver(root, ranks, settings, say=print, beat=lambda: None)
    saver.save(last, engine, Weights(net, ranks), {"step": last})
    saver.wait()
    assert saver.committed == last
    if len(sys.argv) > 6:
        engine._engine.save_checkpoint(sys.argv[6])
    digest = hashlib.sha256()
    for s in sorted(engine.optimizer_slices(), key=lambda s: (s.parameter, s.key)):
        digest.update(s.tensor.detach().numpy().tobytes())
    digests = dist.gather_text(digest.hexdigest())
    if ranks.is_main:
        print("\n" + json.dumps({"losses": losses, "digests": digests}), flush=True)
    dist.shutdown()


if __name__ == "__main__":
    main()
    leave(0)
