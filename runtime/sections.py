"""The config sections that pretraining and fine-tuning share. Torch-free: checks start fast."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from runtime.config import Config, key

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Run(Config):
    """Where a run lives and what makes it reproducible."""

    name: str = key("run", "Name shown in logs and reports", pattern=r"^[\w.-]+$")
    dir: str = key("runs/{name}", "Run directory; {name} is replaced by run.name")
    seed: int = key(0, "Seed of initialisation, data order and dropout", ge=0, lt=2**31)
    device: Device = key("auto", "Where to train; auto takes CUDA where it is present")


class Optim(Config):
    """The optimizer."""

    name: Literal["adamw"] = key("adamw", "Optimizer")
    lr: float = key(3e-4, "Peak learning rate", gt=0)
    betas: tuple[Decay, Decay] = key((0.9, 0.95), "Decay rates of the two moments")
    eps: float = key(1e-8, "Added to the root of the second moment", gt=0)
    weight_decay: float = key(0.1, "Decoupled decay of the weight matrices", ge=0)
    max_grad_norm: float = key(1.0, "Clip the global gradient norm; 0 does not clip", ge=0)


class Schedule(Config):
    """The learning rate over the run, as a fraction of optim.lr."""

    kind: Literal["cosine", "wsd", "constant"] = key(
        "cosine", "Shape after the warm-up; wsd = warmup–stable–decay"
    )
    warmup_steps: int = key(0, "Linear warm-up from 0", unit="steps", ge=0)
    decay_steps: int | None = key(
        None, "wsd: length of the final decay; none = a fifth of the run", unit="steps", ge=1
    )
    min_ratio: float = key(0.1, "Final learning rate ÷ peak", ge=0, le=1)


class Parallel(Config):
    """How the model is spread over the ranks."""

    zero_stage: Literal[0, 1, 2, 3] = key(
        1, "What ZeRO shards: 1 optimizer, 2 + gradients, 3 + parameters, 0 nothing"
    )
    offload: Literal["none", "optimizer"] = key(
        "none", "optimizer: keep master weights and moments in host memory"
    )
    activation_checkpointing: Literal["none", "block", "attention", "mlp"] = key(
        "none",
        "Activations that the backward pass computes again instead of keeping them; none keeps "
        "all, block only each block's input (least memory), attention or mlp all but those of "
        "that branch. true means block, false none",
    )
    communication_timeout_s: int = key(
        600, "A collective that takes longer ends the run", unit="s", ge=1
    )

    @pydantic.field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _from_switch(cls, value: Any) -> Any:
        """Read the two values of the time when it was a switch."""
        return {True: "block", False: "none"}[value] if isinstance(value, bool) else value


class Checkpoint(Config):
    """When to save, and how many saves to keep."""

    every_steps: int = key(500, "Save every so many steps; 0 saves at the end only", ge=0)
    keep_last: int = key(2, "Newest checkpoints kept; 0 keeps all", ge=0)


class Health(Config):
    """When to give up."""

    max_skipped_steps: int = key(
        30, "End the run after so many steps in a row whose gradients overflowed", ge=1
    )


class Log(Config):
    """What is written while training."""

    every_steps: int = key(10, "A metrics record every so many steps", unit="steps", ge=1)
    tensorboard: bool = key(True, "Also write TensorBoard event files")
