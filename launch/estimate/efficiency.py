"""What share of its data sheet an accelerator gives to training. Imports no torch.

Attention on Hopper: the curves of Shah et al. 2024 ("FlashAttention-3"), figures 5 and 6; on Ampere
those of Dao 2023 ("FlashAttention-2"), figures 4 to 7. Memory: an H200 was measured to copy 4.3 of
its 4.8 TB/s. The shares of matrix products on Ampere and Hopper are calibrated on published runs
(launch/plan/published.py says which), and lie below what a product alone reaches (0.87 and 0.79),
because a training step holds the clock down and has no chosen shapes. Those marked are assumed.
"""

from typing import NamedTuple


class Attention(NamedTuple):
    """Shares of the peak that long texts reach, forward and backward, by width of a head."""

    forward_64: float
    backward_64: float
    forward_128: float
    backward_128: float


class Efficiency(NamedTuple):
    """Of one generation of accelerators."""

    gemm: float  # share of the peak that the largest matrix products reach
    memory: float  # share of the bandwidth that a copy reaches
    attention: dict[str, Attention]  # by kernel: torch's choice, and what published runs used


_AMPERE = Attention(0.58, 0.50, 0.68, 0.60)
_HOPPER_2 = Attention(0.30, 0.29, 0.38, 0.33)
_CUDNN = Attention(0.39, 0.45, 0.64, 0.54)  # torch's choice on Hopper since 2.11
_CPU = Attention(0.30, 0.25, 0.30, 0.25)
_OLD = Attention(0.25, 0.20, 0.25, 0.20)  # no FlashAttention; assumed


def _kernels(chosen: Attention, flash2: Attention | None = None) -> dict[str, Attention]:
    """The first FlashAttention has half the rate of the second (Dao 2023, figures 4 to 7)."""
    flash2 = flash2 or chosen
    flash1 = Attention(*(rate / 2 for rate in flash2))
    return {"torch": chosen, "flash2": flash2, "flash1": flash1}


EFFICIENCY = {
    "volta": Efficiency(0.80, 0.85, _kernels(_OLD)),  # assumed
    "turing": Efficiency(0.55, 0.80, _kernels(_OLD)),  # assumed: 70 W hold its clock down
    "ampere": Efficiency(0.77, 0.90, _kernels(_AMPERE)),
    "ada": Efficiency(0.75, 0.90, _kernels(_AMPERE)),  # assumed
    "hopper": Efficiency(0.64, 0.90, _kernels(_CUDNN, _HOPPER_2)),
    "blackwell": Efficiency(0.60, 0.90, _kernels(_CUDNN, _HOPPER_2)),  # assumed
    # Its rates are measured on the spot; what torch gets of numpy's is set by the steps of 459 and
    # 280 ms of llama-tiny in benchmarks/results/engine_overhead_cpu_{fp32,bf16}.json.
    "cpu": Efficiency(0.75, 0.80, _kernels(_CPU)),
}
# Share of a product's own traffic that its arithmetic does not hide. With it products of width 768,
# 1024, 1600 and 4096 on an H200 reach 79, 83, 89 and 95 % of the largest.
UNHIDDEN = 0.5
# Attention over T keys reaches T / (T + 256) of its rate for long texts (the same curves).
SHORT_TEXT = 256
