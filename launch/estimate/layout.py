"""How a model is laid over ranks: all that memory and time depend on. Imports no torch."""

from typing import NamedTuple

from model.memory import Recompute


class Layout(NamedTuple):
    """One way to train: ranks, batch, what ZeRO shards, what is computed again or offloaded.

    offload and offload_to, sharding: as the keys of the same names under `parallel`.
    """

    n_ranks: int
    micro_batch_size: int  # sequences per forward pass and rank
    accumulation_steps: int  # forward passes per optimizer step and rank
    seq_len: int  # tokens
    zero_stage: int
    precision: str = "bf16"
    recompute: Recompute = "none"
    offload: str = "none"  # none | optimizer | all: parameters too
    offload_to: str = "cpu"  # cpu | nvme
    sequence_parallel: int = 1  # ranks that share a sequence; the engine has no more than 1 yet
    shard_ranks: int | None = None  # ranks of a sharding group (hpZ); None = all
    compile: bool = False
    sharding: str = "hpz"  # what shard_ranks groups: hpz | hsdp, which DeepSpeed 0.19 has not

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step."""
        data_ranks = self.n_ranks // self.sequence_parallel
        return data_ranks * self.micro_batch_size * self.accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        """Positions per optimizer step, over all ranks."""
        return self.global_batch_size * self.seq_len

    @property
    def micro_tokens(self) -> int:
        """Positions per forward pass on one rank."""
        return self.micro_batch_size * self.seq_len // self.sequence_parallel

    @property
    def group(self) -> int:
        """Ranks of a sharding group."""
        return min(self.shard_ranks or self.n_ranks, self.n_ranks)

    @property
    def state_ranks(self) -> int:
        """Ranks that the optimizer's states are divided among: hsdp keeps them in the group."""
        if self.zero_stage == 0:
            return 1
        is_hybrid = self.zero_stage == 3 and self.sharding == "hsdp"
        return self.group if is_hybrid else self.n_ranks
