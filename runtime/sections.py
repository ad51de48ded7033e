"""The config sections that pretraining and fine-tuning share. Torch-free: checks start fast."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from runtime.config import Config, key

Precision = Literal["fp32", "bf16", "fp16", "fp8"]
Device = Literal["auto", "cpu", "cuda"]
Decay = Annotated[float, Field(ge=0, lt=1)]


def held_as(precision: Precision) -> Literal["fp32", "bf16", "fp16"]:
    """The format of weights, gradients and checkpoints: fp8 is one of products alone."""
    return "bf16" if precision == "fp8" else precision


class Run(Config):
    """Where a run lives and what makes it reproducible."""

    name: str = key("run", "Name shown in logs and reports", pattern=r"^\w[\w.-]*$", max_length=100)
    dir: str = key("runs/{name}", "Run directory; {name} is replaced by run.name")
    seed: int = key(0, "Seed of initialisation, data order and dropout", ge=0, lt=2**31)
    device: Device = key("auto", "Where to train; auto takes CUDA where it is present")


class Optim(Config):
    """The optimizer."""

    name: Literal["adamw", "muon", "lion"] = key(
        "adamw",
        "muon: orthogonalised updates of the hidden matrices; embeddings, heads, norms and biases "
        "by AdamW, at the same learning rate. lion: the sign of a momentum, at 3 to 10 times less "
        "lr and as much more weight_decay",
    )
    lr: float = key(3e-4, "Peak learning rate", gt=0)
    betas: tuple[Decay, Decay] = key(
        (0.9, 0.95),
        "Decay rates of AdamW's two moments; of Lion's update and its momentum, where 0.9, 0.99 "
        "are usual",
    )
    momentum: Decay = key(0.95, "Decay rate of Muon's momentum")
    eps: float = key(1e-8, "Added to the root of the second moment", gt=0)
    weight_decay: float = key(0.1, "Decoupled decay of the weight matrices", ge=0)
    max_grad_norm: float = key(1.0, "Clip the global gradient norm; 0 does not clip", ge=0)


class Schedule(Config):
    """The learning rate over the run, as a fraction of optim.lr."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = key(
        "cosine",
        "Shape after the warm-up. cosine, linear: falls to min_ratio at the last step; wsd: "
        "warmup–stable–decay",
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
    sharding: Literal["full", "hpz"] = key(
        "full",
        "ZeRO-3: which ranks a parameter is put together from. full: all; hpz: after its first use "
        "in a step from a second copy, cut among shard_ranks neighbours, so that the backward pass "
        "stays inside a node (hierarchical partitioning of ZeRO++)",
    )
    shard_ranks: int | None = key(
        None,
        "sharding: hpz: ranks that hold the second copy among them, as a rule those of a node",
        ge=2,
    )
    offload: Literal["none", "optimizer", "all"] = key(
        "none",
        "optimizer: keep master weights and moments outside the device's memory; all: the "
        "parameters too (ZeRO-3)",
    )
    offload_to: Literal["cpu", "nvme"] = key(
        "cpu",
        "cpu: host memory; nvme: files below nvme_path (ZeRO-3; compiles DeepSpeed's async_io "
        "once)",
    )
    nvme_path: str | None = key(
        None, "offload_to: nvme: a directory on a local disk; each run has its own below it"
    )
    activation_checkpointing: Literal["none", "block", "attention", "mlp"] = key(
        "none",
        "Activations that the backward pass computes again instead of keeping them; none keeps "
        "all, block only each block's input (least memory), attention or mlp all but those of "
        "that branch. true means block, false none",
    )
    communication_timeout_s: int = key(
        600,
        "A collective that takes longer ends the run; at least 1.5 × the timeouts of health, which "
        "find a hang before it",
        unit="s",
        ge=1,
    )

    def __str__(self) -> str:
        """In the words of a run's introduction."""
        told = f"ZeRO-{self.zero_stage}"
        if self.sharding == "hpz":
            told += f" hpZ {self.shard_ranks}"
        if self.offload != "none":
            told += f" offload {self.offload} to {self.offload_to}"
        return told

    @pydantic.field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _from_switch(cls, value: Any) -> Any:
        """Read the two values of the time when it was a switch."""
        return {True: "block", False: "none"}[value] if isinstance(value, bool) else value


class Checkpoint(Config):
    """When to save, and how many saves to keep."""

    every_steps: int = key(500, "Save every so many steps; 0 saves at the end only", ge=0)
    keep_last: int = key(2, "Newest checkpoints kept, at least 2; 0 keeps all", ge=0)
    keep_every: int = key(
        0, "Also keep each checkpoint whose step is a multiple of this; 0 keeps none", ge=0
    )
    background: bool = key(True, "Write while training goes on; false waits for the disk")

    @pydantic.field_validator("keep_last")
    @classmethod
    def _never_one(cls, value: int) -> int:
        """With one checkpoint, damage to it would lose the run."""
        if value == 1:
            raise ValueError("1 leaves no second checkpoint if the newest is damaged; write 2")
        return value


class Hangs(Config):
    """How long a rank may make no progress."""

    start_timeout_s: float = key(
        1800, "Without progress for so long before the first step, the run ends", unit="s", gt=0
    )
    hang_timeout_s: float = key(
        600, "The same after it, with the stacks of all ranks written down", unit="s", gt=0
    )

    @property
    def collective_timeout_s(self) -> float:
        """The least for a collective, so that the watchdog, which knows more, speaks first."""
        return 1.5 * max(self.start_timeout_s, self.hang_timeout_s)


class Health(Hangs):
    """What to do when a step, a rank or the whole run goes wrong."""

    max_skipped_steps: int = key(
        5,
        "After so many steps in a row whose loss or gradients were not finite, go back to the last "
        "checkpoint and leave out the data of those steps",
        unit="steps",
        ge=1,
    )
    max_rollbacks: int = key(3, "End the run at the next one after so many", ge=0)
    spike_sigma: float = key(
        6.0, "A loss so many standard deviations above the mean is a spike; 0 looks for none", ge=0
    )
    spike_window: int = key(
        128, "Steps that mean and deviation are taken over", unit="steps", ge=16
    )
    on_spike: Literal["log", "skip", "lower_lr", "rollback"] = key(
        "log",
        "log: write it down; skip: leave the weights as they are; lower_lr: skip, and halve the "
        "learning rate; rollback: go back to the last checkpoint and leave out the data since",
    )
    checksum_every_steps: int = key(
        100, "Compare what ranks hold in common, bit for bit; 0 = never", unit="steps", ge=0
    )
    slow_rank_factor: float = key(
        1.5, "Name a rank whose own work takes so many times the others'; 0 = never", ge=0
    )


class Log(Config):
    """What is written while training."""

    every_steps: int = key(10, "A metrics record every so many steps", unit="steps", ge=1)
    tensorboard: bool = key(True, "Also write TensorBoard event files")
    histograms_every_steps: int = key(
        0,
        "Histograms of every parameter, for TensorBoard and W&B, every so many steps; 0 = never",
        unit="steps",
        ge=0,
    )
    wandb: str | None = key(
        None,
        "Weights & Biases project that the run is sent to as well; none = not at all. "
        "WANDB_MODE=offline keeps it in the run directory",
        pattern=r"^\w[\w.-]*$",
        max_length=128,
    )

    @property
    def has_sinks(self) -> bool:
        """Whether the numbers go anywhere beside metrics.jsonl."""
        return self.tensorboard or self.wandb is not None
