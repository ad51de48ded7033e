"""A step of ours: as `python -m pretrain` builds it, and the same model in a bare loop."""

import importlib
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.orders import Orders
from benchmarks.peers.shapes import BETAS, LR, MAX_GRAD_NORM, WEIGHT_DECAY, Work
from pretrain.build import attention_choice, build_engine
from pretrain.config import PretrainConfig
from pretrain.objectives.batch import Counts, weighted
from runtime import dist
from runtime.compilation import Compilation


def config_of(work: Work, precision: str, *, compiles: bool, zero_stage: int = 1) -> PretrainConfig:
    """The config of a run that computes this work."""
    shape = work.config().model_dump(exclude_none=True)
    known = PretrainConfig.model_fields["model"].annotation.model_fields
    optim = {"lr": LR, "betas": BETAS, "weight_decay": WEIGHT_DECAY, "max_grad_norm": MAX_GRAD_NORM}
    return PretrainConfig.model_validate(
        {
            "model": {"preset": None, **{k: v for k, v in shape.items() if k in known}},
            "data": {"seq_len": work.seq_len},
            "batch": {"global_batch_size": work.batch_size},
            "steps": 1,
            "optim": optim,
            "parallel": {"zero_stage": zero_stage},
            "precision": precision,
            "compile": compiles,
        }
    )


def engine(work: Work, options: dict[str, Any], orders: Orders, device: torch.device) -> None:
    """Step our engine: DeepSpeed's ZeRO, blocks compiled or not."""
    ranks = dist.init(device.type, timeout_s=600)
    importlib.import_module("deepspeed")  # what it takes is no part of the step

    orders.imported(compiles=options["compile"])
    config = config_of(work, options["precision"], compiles=options["compile"])
    compilation = Compilation(Path(options["folder"]), ranks, is_wanted=options["compile"])
    shape = work.config()
    choice = attention_choice(config, shape, ranks.device)
    built = build_engine(config, shape, "causal_lm", ranks, compilation, choice)
    share = weighted(Counts(work.batch_size * work.seq_len, 0, 0, 0))
    number = 0
    orders.ready()
    while orders.wanted():
        inputs, targets = work.batch(number, ranks.device)
        batch = {"input_ids": inputs, "targets": targets}
        result = built.train_step([batch], share, LR)
        compilation.news()  # as the loop asks after each step
        number += 1
        orders.done(torch.tensor(result.loss))
    dist.shutdown()
