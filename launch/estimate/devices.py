"""Accelerators: memory, bandwidths, peak rates and power, from data sheets. Imports no torch.

Sources: NVIDIA's data sheets of V100 (2020), T4 (2019), A100 (2021), A800, L4 and L40S (2023), H100
(SXM, PCIe, NVL; 2023), H800, H200 and GH200 (2024), HGX B200 (2024); the Ampere GA102 and Ada
AD102 whitepapers for RTX 3090 and 4090. Rates are dense (numbers "with sparsity" halved), links in
one direction (data sheets count both). Memory is what the driver leaves to a process,
`torch.cuda.get_device_properties(0).total_memory`, which is less than on the label.
"""

import difflib
import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from runtime.errors import EXIT_BAD_INPUT, UserError

_GB, _TB, _TFLOP, _GIB = 1e9, 1e12, 1e12, 2**30


class Device(NamedTuple):
    """One kind of accelerator, or this machine's processor."""

    name: str
    torch_names: tuple[str, ...]  # as torch.cuda.get_device_name() spells it
    memory_bytes: float
    bandwidth: float  # bytes/s of its memory
    peak: dict[str, float]  # precision → FLOP/s
    link: float  # bytes/s to its neighbours in a node, one direction
    watts: float
    generation: str  # of efficiency.py
    host_link: float  # bytes/s to the host's memory, one direction

    @property
    def has_fp8(self) -> bool:
        """Whether it multiplies in 8 bits, or is the processor, which emulates that."""
        return self.generation in ("ada", "hopper", "blackwell", "cpu")


def _device(
    name: str,
    torch_names: tuple[str, ...],
    generation: str,
    *,
    gib: float,
    bandwidth: float,
    half: float,
    fp32: float,
    link: float,
    host: float,
    watts: float,
) -> Device:
    """A device in the units of data sheets: GiB, TB/s, TFLOP/s, GB/s, W."""
    peak = {"fp16": half * _TFLOP, "fp32": fp32 * _TFLOP}
    if generation not in ("volta", "turing"):  # the first with bf16 is Ampere
        peak["bf16"] = half * _TFLOP
    return Device(
        name,
        torch_names,
        gib * _GIB,
        bandwidth * _TB,
        peak,
        link * _GB,
        watts,
        generation,
        host * _GB,
    )


_PCIE_3, _PCIE_4, _PCIE_5 = 16, 32, 64  # ×16, GB/s in one direction
_A100 = {"half": 312, "fp32": 19.5, "host": _PCIE_4}
_H100 = {"half": 989, "fp32": 67, "host": _PCIE_5, "watts": 700}

_GPUS = (
    _device(
        "a100-40gb", ("NVIDIA A100-SXM4-40GB",), "ampere",
        gib=39.4, bandwidth=1.555, link=300, watts=400, **_A100,
    ),
    _device(
        "a100-80gb", ("NVIDIA A100-SXM4-80GB",), "ampere",
        gib=79.2, bandwidth=2.039, link=300, watts=400, **_A100,
    ),
    _device(
        "a100-pcie-40gb", ("NVIDIA A100-PCIE-40GB",), "ampere",
        gib=39.4, bandwidth=1.555, link=_PCIE_4, watts=250, **_A100,
    ),
    _device(
        "a100-pcie-80gb", ("NVIDIA A100 80GB PCIe",), "ampere",
        gib=79.2, bandwidth=1.935, link=_PCIE_4, watts=300, **_A100,
    ),
    _device(
        "a800", ("NVIDIA A800-SXM4-80GB",), "ampere",
        gib=79.2, bandwidth=2.039, link=200, watts=400, **_A100,
    ),
    _device(
        "h100", ("NVIDIA H100 80GB HBM3",), "hopper",
        gib=79.1, bandwidth=3.35, link=450, **_H100,
    ),
    # Bridges of the PCIe and NVL cards join two or four; a node of eight talks through PCIe.
    _device(
        "h100-pcie", ("NVIDIA H100 PCIe",), "hopper",
        gib=79.1, bandwidth=2.0, half=756, fp32=51, link=_PCIE_5, host=_PCIE_5, watts=350,
    ),
    _device(
        "h100-nvl", ("NVIDIA H100 NVL",), "hopper",
        gib=93.0, bandwidth=3.9, half=835, fp32=60, link=_PCIE_5, host=_PCIE_5, watts=400,
    ),
    _device(
        "h800", ("NVIDIA H800",), "hopper",
        gib=79.1, bandwidth=3.35, link=200, **_H100,
    ),
    _device(
        "h200", ("NVIDIA H200",), "hopper",
        gib=139.8, bandwidth=4.8, link=450, **_H100,
    ),
    _device(
        "h200-nvl", ("NVIDIA H200 NVL",), "hopper",
        gib=139.8, bandwidth=4.8, half=835, fp32=60, link=_PCIE_5, host=_PCIE_5, watts=600,
    ),
    _device(
        "gh200", ("NVIDIA GH200 480GB",), "hopper",
        gib=94.5, bandwidth=4.0, half=989, fp32=67, link=450, host=450, watts=700,
    ),
    _device(
        "b200", ("NVIDIA B200",), "blackwell",
        gib=178.4, bandwidth=8.0, half=2250, fp32=75, link=900, host=_PCIE_5, watts=1000,
    ),
    _device(
        "l40s", ("NVIDIA L40S",), "ada",
        gib=44.4, bandwidth=0.864, half=362, fp32=91.6, link=_PCIE_4, host=_PCIE_4, watts=350,
    ),
    _device(
        "l4", ("NVIDIA L4",), "ada",
        gib=22.1, bandwidth=0.3, half=121, fp32=30.3, link=_PCIE_4, host=_PCIE_4, watts=72,
    ),
    _device(
        "rtx3090", ("NVIDIA GeForce RTX 3090",), "ampere",
        gib=23.7, bandwidth=0.936, half=71, fp32=35.6, link=_PCIE_4, host=_PCIE_4, watts=350,
    ),
    _device(
        "rtx4090", ("NVIDIA GeForce RTX 4090",), "ada",
        gib=23.6, bandwidth=1.008, half=165, fp32=82.6, link=_PCIE_4, host=_PCIE_4, watts=450,
    ),
    _device(
        "v100-16", ("Tesla V100-SXM2-16GB",), "volta",
        gib=15.8, bandwidth=0.9, half=125, fp32=15.7, link=150, host=_PCIE_3, watts=300,
    ),
    _device(
        "v100-32", ("Tesla V100-SXM2-32GB",), "volta",
        gib=31.7, bandwidth=0.9, half=125, fp32=15.7, link=150, host=_PCIE_3, watts=300,
    ),
    _device(
        "v100-pcie-16", ("Tesla V100-PCIE-16GB",), "volta",
        gib=15.8, bandwidth=0.9, half=112, fp32=14, link=_PCIE_3, host=_PCIE_3, watts=250,
    ),
    _device(
        "v100-pcie-32", ("Tesla V100-PCIE-32GB",), "volta",
        gib=31.7, bandwidth=0.9, half=112, fp32=14, link=_PCIE_3, host=_PCIE_3, watts=250,
    ),
    _device(
        "t4", ("Tesla T4",), "turing",
        gib=14.6, bandwidth=0.32, half=65, fp32=8.1, link=_PCIE_3, host=_PCIE_3, watts=70,
    ),
)  # fmt: skip
DEVICES = {device.name: device for device in _GPUS}
NAMES = (*DEVICES, "cpu")


def find(name: str) -> Device:
    """The device of that name, or of torch's name for it; "cpu" is this machine, measured.

    Raises UserError (status 2) that names the nearest match.
    """
    plain = name.strip().lower().replace("_", "-").removeprefix("nvidia-")
    if plain == "cpu":
        return this_machine()
    if plain in DEVICES:
        return DEVICES[plain]
    for device in _GPUS:
        if name in device.torch_names:
            return device
    near = difflib.get_close_matches(plain, NAMES, n=1, cutoff=0.5)
    starts = [known for known in NAMES if plain and known.startswith(plain)]
    mend = f"did you mean {(starts or near)[0]}? " if starts or near else ""
    raise UserError(
        f"no GPU {name[:60]!r} in the table; {mend}known: {', '.join(NAMES)}", status=EXIT_BAD_INPUT
    )


@functools.cache
def this_machine() -> Device:
    """This machine's processor: its memory asked for, its rates measured in about 0.2 s."""
    rate, bandwidth = _measured_rates()
    # Where the processor has instructions for it, nearly twice the products (efficiency.py says of
    # which measurement); elsewhere they are made in fp32, with conversions.
    factor = 1.75 if _has_bf16_products() else 0.5
    return Device(
        "cpu",
        ("cpu",),
        float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        bandwidth,
        {"fp32": rate, "bf16": factor * rate},
        bandwidth / 2,  # ranks of one machine talk through its memory: written, and read
        5.0 * (os.cpu_count() or 1),  # a server core under load, with its share of the rest
        "cpu",
        bandwidth,
    )


def _measured_rates() -> tuple[float, float]:
    """FLOP/s of a product in fp32 on all cores, and bytes/s of a copy.

    The best of many short ones on one core: others may be using the cores, and what counts is what
    they can do. Threads that wait for each other on a busy machine measure nothing but that.
    """
    import numpy as np

    size = 64  # too small to be shared out among threads
    a = np.ones((size, size), dtype=np.float32)
    result = np.empty_like(a)
    long = np.ones(1 << 22, dtype=np.float32)
    target = np.empty_like(long)
    product = _least_seconds(lambda: np.matmul(a, a, out=result), 0.05)
    copy = _least_seconds(lambda: np.copyto(target, long), 0.1)
    return _cores() * 2 * size**3 / product, 2 * long.nbytes / copy


def _cores() -> float:
    """Cores that this process may use; two threads of one core count once."""
    threads = len(os.sched_getaffinity(0))
    told = {}
    for line in _cpuinfo().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("siblings", "cpu cores") and value.strip().isdigit():
            told[name.strip()] = int(value)
    if not told.get("siblings") or not told.get("cpu cores"):
        return float(threads)
    return max(1.0, threads * min(1.0, told["cpu cores"] / told["siblings"]))


def _least_seconds(work: Callable[[], object], budget_s: float) -> float:
    least, end = math.inf, time.perf_counter() + budget_s
    while (start := time.perf_counter()) < end:
        work()
        least = min(least, time.perf_counter() - start)
    return least


def _has_bf16_products() -> bool:
    return "_bf16" in _cpuinfo()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
