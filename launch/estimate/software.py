"""What the code costs beside its products: traffic, launches, buckets. Imports no torch."""

from typing import NamedTuple


class Software(NamedTuple):
    """How a code base computes and communicates; a property of the code, not of a machine."""

    # Times that each activation kept for the backward pass moves through memory: written, read by
    # the next kernel, read in the backward pass, its gradient written and read; fewer if fused.
    passes: float
    logit_bytes: float  # traffic per score over the vocabulary, forward and backward
    host_s: float  # time of Python and launches per layer and micro-batch
    optimizer_bytes: float  # traffic per parameter and step
    gather_numbers: int | None  # parameters that one all-gather of ZeRO-3 brings; None = a layer
    is_reduce_scatter: bool  # whether ZeRO-1 and 2 reduce-scatter gradients, or all-reduce them
    hides_gradients: bool  # whether gradients are reduced while the backward pass goes on
    attention: str  # kernel: torch (its own choice), flash2 or flash1


# Our engine. Of DeepSpeed: stages 1 and 2 all-reduce buckets (use_multi_rank_bucket_allreduce),
# stage 1 once after the last micro-batch; stage 3 gathers 50 M parameters ahead. Optimizer: norm 4,
# clip 8, AdamW 28, cast 6, zero 4 bytes.
EAGER = Software(6.0, 28.0, 0.5e-3, 50.0, 50_000_000, False, False, "torch")
COMPILED = EAGER._replace(passes=3.5, logit_bytes=16.0, host_s=0.25e-3)
