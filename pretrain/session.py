"""What a pretraining run holds, built from its config or resumed from its last checkpoint."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.loader import Loader
from data_prep.shards import Shards
from model import build, load_pretrained, save_pretrained
from model.config import ModelConfig
from model.flops import mfu, parameters
from model.heads import Model
from model.init import parameter_groups
from pretrain.config import PretrainConfig, open_data
from pretrain.verify import verify_data
from runtime import dist, provenance
from runtime.checkpoint import CheckpointInfo
from runtime.checkpoint.commit import prune
from runtime.checkpoint.reader import TrainingState
from runtime.checkpoint.writer import save
from runtime.config import flat
from runtime.deepspeed_config import deepspeed_config
from runtime.dist import Ranks
from runtime.engine import Engine
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.metrics import MetricsLog, Progress, device_name
from runtime.optim import build_optimizer
from runtime.run_directory import newest_checkpoint, prepare_run_directory
from runtime.seed import seed_initialisation

HEAD = "causal_lm"


@dataclass
class Session:
    """A run in memory: what the loop reads and what a checkpoint stores."""

    config: PretrainConfig
    ranks: Ranks
    model_config: ModelConfig
    tokenizer_dir: Path
    loader: Loader
    engine: Engine
    log: MetricsLog | None  # on the main rank
    progress: Progress
    step: int = 0
    tokens_seen: int = 0
    saved_step: int | None = None
    skipped_in_a_row: int = 0

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints lie."""
        return self.config.run_dir / "checkpoints"

    def save(self) -> None:
        """Commit a checkpoint of this step and delete old ones. Collective."""
        if self.saved_step == self.step:
            return
        state = {
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "loader": self.loader.state_dict(),
            "config": self.config.model_dump(mode="json"),
            "versions": provenance.versions(),
            "world_size": self.ranks.world_size,
        }
        save(self.checkpoints, self.step, self.engine, self._export, state)
        self.saved_step = self.step
        if self.ranks.is_main:
            prune(self.checkpoints, self.config.checkpoint.keep_last)
            self.progress.say(f"saved {self.checkpoints / f'step_{self.step:08d}'}")

    def _export(self, directory: Path, parameters: dict[str, torch.Tensor]) -> None:
        net = self.engine.module
        assert isinstance(net, Model)
        save_pretrained(net, directory, tokenizer_dir=self.tokenizer_dir, state=parameters)

    def record(self, **values: Any) -> None:
        """Write a metrics record of this step (main rank)."""
        if self.log is not None:
            self.log.record(self.step, tokens_seen=self.tokens_seen, **values)

    def utilisation(self, tokens_per_second: float) -> dict[str, float | None]:
        """Model-FLOPs utilisation in both attention conventions; None on an unknown device."""
        found = mfu(
            tokens_per_second,
            self.model_config,
            self.config.data.seq_len,
            device_name(self.ranks.device),
            self.ranks.world_size,
            self.config.precision,
        )
        return {"mfu": found and found.full, "mfu_causal": found and found.causal}


def start(config: PretrainConfig, ranks: Ranks) -> Session:
    """Build a run, or take up the newest whole checkpoint in its directory. Collective."""
    prepare_run_directory(config.run_dir, config)
    dist.together(lambda: verify_data(config), only_main=True)
    train = [open_data(source.path, "train") for source in config.data.sources]
    model_config = config.model_config_for(train[0])
    loader = Loader(
        list(zip(train, [source.weight for source in config.data.sources], strict=True)),
        seq_len=config.data.seq_len,
        global_batch_size=config.batch.global_batch_size,
        seed=config.run.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        document_boundaries=config.data.packing == "documents",
    )
    checkpoint = newest_checkpoint(config.run_dir / "checkpoints", ranks)
    net = _build_model(config, model_config, checkpoint)
    net.trunk.checkpoints_activations = config.parallel.activation_checkpointing
    if config.compile:
        for block in net.trunk.blocks:
            block.compile()
    engine = _build_engine(config, net, ranks)
    progress = Progress(config.total_steps, stream=None if ranks.is_main else _devnull())
    session = Session(
        config, ranks, model_config, train[0].tokenizer_dir, loader, engine, None, progress
    )
    if checkpoint is not None:
        _restore(session, checkpoint)
    if ranks.is_main:
        session.log = MetricsLog(
            config.run_dir, resume_step=session.step, tensorboard=config.log.tensorboard
        )
        _introduce(session, train, checkpoint)
    return session


def _devnull() -> Any:
    return Path(os.devnull).open("w")  # open as long as the run lives


def _build_model(
    config: PretrainConfig, model_config: ModelConfig, checkpoint: CheckpointInfo | None
) -> Model:
    if checkpoint is None:
        seed_initialisation(config.run.seed)
        return build(model_config, head=HEAD)
    net = load_pretrained(checkpoint.path, head=HEAD, dropout=model_config.dropout)
    stored, wanted = net.config.model_dump(), model_config.model_dump()
    # What can change from one stretch of a run to the next without changing the architecture.
    free = {"dropout", "init_std", "pad_token_id", "num_labels", "id2label"}
    different = [k for k in wanted if k not in free and stored[k] != wanted[k]]
    if different:
        listed = ", ".join(f"model.{k}: {stored[k]} → {wanted[k]}" for k in different)
        raise UserError(
            f"{checkpoint.path} is of another architecture ({listed}); "
            "restore the config, or choose another run.dir",
            status=EXIT_BAD_INPUT,
        )
    return net.float().train()


def _build_engine(config: PretrainConfig, net: Model, ranks: Ranks) -> Engine:
    net.to(ranks.device)
    optimizer = build_optimizer(parameter_groups(net, config.optim.weight_decay), config.optim)
    settings = deepspeed_config(
        config.parallel,
        config.precision,
        micro_batch_size=config.micro_batch_size(ranks.world_size),
        accumulation_steps=config.accumulation_steps(ranks.world_size),
        world_size=ranks.world_size,
        max_grad_norm=config.optim.max_grad_norm,
        device_type=ranks.device.type,
        extra=config.deepspeed.extra,
    )
    return Engine(net, optimizer, settings, ranks)


def _restore(session: Session, checkpoint: CheckpointInfo) -> None:
    """Continue exactly after the checkpoint's step: weights, moments, data order, counters."""
    state = TrainingState(checkpoint.path)
    session.loader.load_state_dict(state.values["loader"])
    _tell_changes(session, state.values["config"])
    session.engine.load_optimizer_slices(state.read, state.values["optimizer_steps"])
    session.step = session.saved_step = state.values["step"]
    session.tokens_seen = state.values["tokens_seen"]


def _tell_changes(session: Session, stored: dict[str, Any]) -> None:
    """Say which settings the run goes on with that its first part did not have."""
    before, now = flat(stored), flat(session.config.model_dump(mode="json"))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            session.progress.say(f"changed: {name} was {before.get(name)}, now {now.get(name)}")


def _introduce(session: Session, train: list[Shards], checkpoint: CheckpointInfo | None) -> None:
    config, ranks, say = session.config, session.ranks, session.progress.say
    tokens = config.total_steps * config.tokens_per_step
    epochs = tokens / sum(shards.tokens for shards in train)
    say(
        f"{session.model_config.family} model, {parameters(session.model_config) / 1e6:.2f} M "
        f"parameters; {config.precision}, ZeRO-{config.parallel.zero_stage}, "
        f"{ranks.world_size} × {device_name(ranks.device)}"
    )
    say(
        f"{config.total_steps:,} steps of {config.tokens_per_step:,} tokens = {tokens:,} "
        f"({epochs:.2f} epochs); run directory {config.run_dir}"
    )
    if checkpoint is not None:
        say(f"resumed from {checkpoint.path}, step {session.step}")
