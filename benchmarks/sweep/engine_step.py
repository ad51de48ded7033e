"""A step as `python -m pretrain` builds it under `compile: true`. Needs DeepSpeed and orjson."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import pretrain.build
from benchmarks.sweep.models import Model
from benchmarks.sweep.prepared import Prepared, Variant, draw
from pretrain.build import attention_choice, build_engine
from pretrain.config import PretrainConfig
from pretrain.objectives.batch import Counts, weighted
from pretrain.objectives.traits import TRAITS
from runtime import dist
from runtime.compilation import Compilation
from runtime.dist import Ranks


def config_of(model: Model, variant: Variant) -> PretrainConfig:
    """The config of a run that computes this step."""
    return PretrainConfig.model_validate(
        {
            "model": {"preset": model.preset, **model.overrides},
            "objective": model.head,
            "data": {"seq_len": model.seq_len},
            "batch": {"global_batch_size": variant.batch_size},
            "steps": 1,
            "parallel": {"zero_stage": 1, "activation_checkpointing": variant.recompute},
            "precision": model.precision,
            "compile": True,
            "kernels": variant.kernels,
        }
    )


def engine_step(model: Model, variant: Variant, device: torch.device) -> Prepared:
    """Build the engine and a batch. Raises as `build_engine`."""
    ranks, config, shape = _ranks(device), config_of(model, variant), model.config()
    compilation = Compilation(Path(_folder()), ranks, is_wanted=True)
    choice = attention_choice(config, shape, ranks.device)
    head = TRAITS[config.objective].head
    # Weights are drawn where they will be: on the host 7 billion numbers take minutes.
    with mock.patch.object(pretrain.build, "build", lambda *a, **k: draw(device, *a, **k)):
        engine = build_engine(config, shape, head, ranks, compilation, choice)
    batch = model.batch(variant.batch_size, ranks.device)
    predicted = batch.get("rows", batch["targets"]).numel()
    share = weighted(Counts(predicted, 0, batch["targets"].numel(), 0))

    def step() -> None:
        engine.train_step([batch], share, config.optim.lr)
        compilation.news()  # as the loop asks after each step

    net: Any = engine.module
    told = {"engine": "ZeRO-1", "compiled": compilation.problem or "yes", "attention": choice.told}
    return Prepared(step, net, batch, told)


@functools.cache
def _folder() -> str:
    """Where what is compiled is kept, as long as this process."""
    folder = tempfile.mkdtemp(prefix="sweep-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _ranks(device: torch.device) -> Ranks:
    """The process group, which outlives a batch that did not fit."""
    if torch.distributed.is_initialized():
        return Ranks(0, 0, 1, dist.resolve_device(device.type))
    return dist.init(device.type, timeout_s=600)
