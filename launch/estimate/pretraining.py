"""A pretraining config as what estimates need to know of it. Imports no torch."""

from typing import NamedTuple

from launch.estimate.devices import Device
from launch.estimate.layout import Layout
from launch.estimate.memory import RunMemory, run_memory
from model.config import ModelConfig
from pretrain.config import PretrainConfig
from pretrain.objectives.traits import TRAITS
from runtime.sections import held_as


class Training(NamedTuple):
    """What is trained, and how it is laid over ranks."""

    config: PretrainConfig
    model: ModelConfig
    layout: Layout

    @property
    def head(self) -> str:
        """The head that the objective trains."""
        return TRAITS[self.config.objective].head

    @property
    def predicted_fraction(self) -> float:
        """Share of the positions whose scores over the vocabulary are computed."""
        is_masked = TRAITS[self.config.objective].is_masked
        return self.config.masking.fraction if is_masked else 1.0

    @property
    def saves(self) -> str:
        """Whether anything is trained after the first save."""
        every, steps = self.config.checkpoint.every_steps, self.config.total_steps
        return "often" if 0 < every < steps else "at_end"


def training(config: PretrainConfig, model: ModelConfig, ranks: int) -> Training:
    """Lay a config over so many ranks."""
    parallel = config.parallel
    layout = Layout(
        n_ranks=ranks,
        micro_batch_size=config.micro_batch_size(ranks),
        accumulation_steps=config.accumulation_steps(ranks),
        seq_len=config.data.seq_len,
        zero_stage=parallel.zero_stage,
        precision=held_as(config.precision),
        recompute=parallel.activation_checkpointing,
        offload=parallel.offload,
        offload_to=parallel.offload_to,
        shard_ranks=None if parallel.sharding == "full" else parallel.shard_ranks,
        sharding="hpz",
        compile=config.compile,
    )
    return Training(config, model, layout)


def memory_of(one: Training, device: Device) -> RunMemory:
    """The memory of each rank."""
    return run_memory(
        one.model,
        one.layout,
        device,
        head=one.head,
        predicted_fraction=one.predicted_fraction,
        optimizer=one.config.optim.name,
        saves=one.saves,
        tensorboard=one.config.log.tensorboard,
    )
