"""Trains models with plain DeepSpeed and saves on the way; run as two ranks.

usage: deepspeed_worker.py JOBS.json
JOBS: {"config": a config of ours, "jobs": [{"model": gpt2|llama|ours, "stage": 0…3, "dir": …,
"frozen": bool}]}. Each job trains to SAVE_AT, saves, goes on to LAST, and leaves losses.json.
"""

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from data_prep.loader import Loader
from data_prep.shards import Shards
from model import build
from model.hf.config import to_hf_config
from pretrain.config import PretrainConfig
from runtime.config import load

SAVE_AT, LAST = 4, 7


def settings(stage: int, micro_batch_size: int) -> dict:
    """What a user of plain DeepSpeed writes."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage, "sub_group_size": 3000},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def new_model(kind: str, config: PretrainConfig, shards: Shards) -> torch.nn.Module:
    torch.manual_seed(11)
    shape = config.model_config_for(shards)
    if kind == "ours":
        return build(shape)
    raw = to_hf_config(shape, "causal_lm", "float32")
    theirs = AutoConfig.for_model(**raw)
    return AutoModelForCausalLM.from_config(theirs, attn_implementation="eager")


def groups(net: torch.nn.Module, decay: float) -> list[dict]:
    trained = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def train(job: dict, path: Path) -> None:
    config = load(PretrainConfig, path, job["overrides"])
    shards = Shards(config.data.sources[0].path, "train")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    size = config.batch.global_batch_size
    loader = iter(
        Loader(
            [(shards, 1.0)],
            seq_len=config.data.seq_len,
            global_batch_size=size,
            seed=config.run.seed,
            rank=rank,
            world_size=ranks,
        )
    )
    net = new_model(job["model"], config, shards)
    if job.get("frozen"):
        net.get_parameter("transformer.wpe.weight").requires_grad_(False)
        net.register_buffer("extra", torch.arange(3.0))
    optim = config.optim
    optimizer = torch.optim.AdamW(
        groups(net, optim.weight_decay), lr=optim.lr, betas=optim.betas, eps=optim.eps
    )
    engine, *_ = deepspeed.initialize(
        model=net,
        optimizer=optimizer,
        config=settings(job["stage"], size // ranks),
        dist_init_required=False,
    )
    losses = {}
    for step in range(1, LAST + 1):
        batch = next(loader)
        logits = engine(input_ids=batch["input_ids"]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses[step] = float(mean) / ranks
        if step == SAVE_AT:
            engine.save_checkpoint(job["dir"], client_state={"universal_checkpoint_info": {}})
            if rank == 0:
                (Path(job["dir"]) / "model.json").write_text(type(net).__name__)
    if rank == 0:
        (Path(job["dir"]) / "losses.json").write_text(json.dumps(losses))
    engine.destroy()


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    dist.init_process_group("gloo")
    jobs = json.loads(Path(sys.argv[1]).read_text())
    for job in jobs["jobs"]:
        train(job, Path(jobs["config"]))
    dist.barrier()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
