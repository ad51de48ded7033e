"""What share of its data sheet an accelerator gives to training. Imports no torch.

None of these is fitted to a run. Measured: an H200 gives 769–798 of 989 TFLOP/s to the largest
products and 4.3 of 4.8 TB/s to a copy. Attention on Hopper: the curves of Shah et al. 2024
("FlashAttention-3"), figures 5 and 6; on Ampere those of Dao 2023 ("FlashAttention-2"), figures 4
to 7. The others are marked as assumed.
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
    attention: Attention  # by the kernel that torch takes there
    flash2: Attention  # by FlashAttention-2, which most published runs used


_AMPERE = Attention(0.58, 0.50, 0.68, 0.60)
_HOPPER_2 = Attention(0.30, 0.29, 0.38, 0.33)
_CUDNN = Attention(0.39, 0.45, 0.64, 0.54)  # torch's choice on Hopper since 2.11
_OLD = Attention(0.25, 0.20, 0.25, 0.20)  # no FlashAttention; assumed
EFFICIENCY = {
    "volta": Efficiency(0.80, 0.85, _OLD, _OLD),  # assumed
    "turing": Efficiency(0.55, 0.80, _OLD, _OLD),  # assumed: 70 W hold its clock down
    "ampere": Efficiency(0.86, 0.90, _AMPERE, _AMPERE),  # 269 of 312: usual for 8192³; assumed
    "ada": Efficiency(0.80, 0.90, _AMPERE, _AMPERE),  # assumed
    "hopper": Efficiency(0.79, 0.90, _CUDNN, _HOPPER_2),
    "blackwell": Efficiency(0.75, 0.90, _CUDNN, _HOPPER_2),  # assumed
    # Its rates are measured on the spot; what torch gets of numpy's is assumed.
    "cpu": Efficiency(0.60, 0.80, _OLD, _OLD),
}
# Share of a product's own traffic that its arithmetic does not hide. With it products of width 768,
# 1024, 1600 and 4096 on an H200 reach 79, 83, 89 and 95 % of the largest.
UNHIDDEN = 0.5
# Attention over T keys reaches T / (T + 256) of its rate for long texts (the same curves).
SHORT_TEXT = 256
