"""The config section that says how a run is spread over its ranks, and its checks. Torch-free."""

from collections.abc import Iterator
from typing import Literal

from runtime import sections
from runtime.config import Config, Problem, key


class Parallel(Config):
    """How the model is spread over the ranks."""

    zero_stage: Literal["none", 0, 1, 2, 3] = key(
        "none",
        "none: a copy of the model on every rank (DDP). Otherwise DeepSpeed's ZeRO, which shards 1 "
        "the optimizer, 2 + gradients, 3 + parameters, 0 nothing. Under ZeRO bf16 weights are "
        "rounded, with fp32 masters beside them",
    )
    offload: Literal["none", "optimizer", "all"] = key(
        "none",
        "ZeRO: optimizer keeps master weights and moments in host memory; all (ZeRO-3) the "
        "parameters too",
    )
    activation_checkpointing: Literal["none", "block", "attention", "mlp"] = key(
        "none",
        "Activations that the backward pass computes again instead of keeping them; none keeps "
        "all, block only each block's input, attention or mlp all but those of that branch",
    )

    @property
    def zero(self) -> sections.Parallel | None:
        """The same in the words of the engine; None without ZeRO."""
        if self.zero_stage == "none":
            return None
        return sections.Parallel(zero_stage=self.zero_stage, offload=self.offload)

    def __str__(self) -> str:
        """In the words of a run's introduction."""
        return "DDP" if self.zero is None else str(self.zero)


def check_parallel(parallel: Parallel, precision: str) -> Iterator[Problem]:
    """The settings that don't go together."""
    stage = parallel.zero_stage
    if stage == 0 and precision == "bf16":
        yield Problem(
            "parallel.zero_stage",
            "0 is computed wrongly in bf16 by DeepSpeed; write 1, or none, or precision: fp32",
        )
    if parallel.offload != "none" and stage in ("none", 0):
        yield Problem("parallel.offload", f"needs ZeRO, but parallel.zero_stage is {stage}; write "
                      "1, 2 or 3")  # fmt: skip
    if parallel.offload == "all" and stage != 3:
        yield Problem(
            "parallel.offload", f"all needs parallel.zero_stage: 3, got {stage}; write optimizer"
        )
