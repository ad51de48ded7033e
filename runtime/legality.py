"""Which stage, offload, sharding, precision and compiler go together, as data.

Every optimizer goes with all of it. Torch-free: the run's own check and the pre-flight check read
the same table.
"""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from runtime import hardware
from runtime.config import Problem
from runtime.sections import Parallel, Precision


class Combination(NamedTuple):
    """What a run combines."""

    parallel: Parallel
    precision: Precision
    compile: bool
    device: str  # cpu | cuda
    ranks: int
    kernels: str = "torch"  # torch | triton
    attention: str = "auto"  # auto | cudnn | flash | flex | efficient | math


class Rule(NamedTuple):
    """What does not go together, the key to change, and how; names in braces are filled in."""

    key: str
    is_broken: Callable[[Combination], bool]
    mend: str


RULES = (
    Rule(
        "precision",
        lambda c: c.precision == "fp16" and c.device == "cpu",
        "fp16 does not run on a CPU; write bf16 or fp32",
    ),
    Rule(
        "kernels",
        lambda c: c.kernels == "triton" and c.device == "cpu",
        "triton needs a GPU, and this run is on a CPU; write torch",
    ),
    Rule(
        "attention",
        lambda c: c.attention not in ("auto", "math") and c.device == "cpu",
        "{attention} needs a GPU, and this run is on a CPU; write auto",
    ),
    Rule(
        "attention",
        lambda c: (
            c.attention in ("cudnn", "flash") and c.device == "cuda" and c.precision == "fp32"
        ),
        "{attention} takes 16-bit numbers alone; write auto, or precision: bf16",
    ),
    Rule(
        "parallel.zero_stage",
        lambda c: c.parallel.zero_stage == 0 and c.precision != "fp32",
        "stage 0 with {precision} takes a wrong first step in DeepSpeed; "
        "write 1, which costs nothing on one rank, or precision: fp32",
    ),
    Rule(
        "parallel.offload",
        lambda c: c.parallel.zero_stage == 0 and c.parallel.offload != "none",
        "needs parallel.zero_stage 1, 2 or 3; stage 0 shards nothing",
    ),
    Rule(
        "parallel.offload",
        lambda c: c.parallel.zero_stage in (1, 2) and c.parallel.offload == "all",
        "all needs parallel.zero_stage: 3: stage {zero_stage} keeps whole parameters on every "
        "rank; write 3, or offload: optimizer",
    ),
    Rule(
        "parallel.offload_to",
        lambda c: c.parallel.offload == "none" and c.parallel.offload_to == "nvme",
        "nvme, and parallel.offload: none sends nothing there; write offload: optimizer or all, or "
        "leave offload_to out",
    ),
    Rule(
        "parallel.offload_to",
        lambda c: (
            c.parallel.zero_stage < 3
            and c.parallel.offload != "none"
            and c.parallel.offload_to == "nvme"
        ),
        "nvme needs parallel.zero_stage: 3: DeepSpeed's stage {zero_stage} keeps optimizer states "
        "in memory; write 3, or offload_to: cpu",
    ),
    Rule(
        "parallel.nvme_path",
        lambda c: c.parallel.offload_to == "nvme" and c.parallel.nvme_path is None,
        "offload_to: nvme needs a directory on a local disk, such as /mnt/nvme",
    ),
    Rule(
        "parallel.sharding",
        lambda c: c.parallel.sharding != "full" and c.parallel.zero_stage < 3,
        "{sharding} needs parallel.zero_stage: 3: stage {zero_stage} does not shard parameters; "
        "write 3, or sharding: full",
    ),
    Rule(
        "parallel.shard_ranks",
        lambda c: c.parallel.sharding != "full" and c.parallel.shard_ranks is None,
        "sharding: {sharding} needs a number of ranks, as a rule the GPUs of a node",
    ),
    Rule(
        "parallel.shard_ranks",
        lambda c: c.parallel.sharding == "full" and c.parallel.shard_ranks is not None,
        "{shard_ranks} means nothing to sharding: full; write sharding: hpz, or leave it out",
    ),
    Rule(
        "parallel.shard_ranks",
        lambda c: (
            c.parallel.sharding != "full" and c.ranks % (c.parallel.shard_ranks or c.ranks) != 0
        ),
        "{ranks} ranks do not split into groups of {shard_ranks}; write a divisor of {ranks}, or "
        "sharding: full",
    ),
    Rule(
        "parallel.sharding",
        lambda c: (
            c.parallel.sharding == "hpz"
            and c.parallel.offload == "all"
            and c.parallel.offload_to == "nvme"
        ),
        "hpz does not go with parameters on nvme: DeepSpeed cannot keep the second copy there; "
        "write offload: optimizer, offload_to: cpu, or sharding: full",
    ),
)


def check_combination(combination: Combination) -> Iterator[Problem]:
    """What does not go together, and what this machine lacks for it."""
    facts = {
        **combination._asdict(),
        **combination.parallel.model_dump(),
    }
    for rule in RULES:
        if rule.is_broken(combination):
            yield Problem(rule.key, rule.mend.format(**facts))


def check_tools(combination: Combination) -> Iterator[Problem]:
    """Libraries that the combination needs, and that are not on this machine."""
    if combination.kernels == "triton" and importlib.util.find_spec("triton") is None:
        yield Problem(
            "kernels",
            "triton is not installed here; run pip install 'ingot[kernels]', or write torch",
        )
    if combination.precision == "fp8" and importlib.util.find_spec("torchao") is None:
        yield Problem(
            "precision",
            "fp8 needs torchao, which is not installed here; run pip install 'ingot[fp8]', or "
            "write bf16",
        )
    parallel = combination.parallel
    if parallel.offload == "none" or parallel.offload_to != "nvme":
        return
    if missing := missing_for_nvme():
        yield Problem(
            "parallel.offload_to",
            f"nvme compiles DeepSpeed's async_io on first use, which needs {missing}; install it "
            "(Debian: apt install g++ libaio-dev), or write cpu",
        )
    if parallel.nvme_path is not None and not Path(parallel.nvme_path).is_dir():
        yield Problem(
            "parallel.nvme_path", f"{parallel.nvme_path} is no directory here; make it, or mount it"
        )


def missing_for_nvme() -> str:
    """What async_io cannot be built without here; empty where nothing is missing."""
    if not hardware.has_cpp_compiler():
        return "a C++ compiler"
    if not any(Path(root, "include/libaio.h").exists() for root in ("/usr", "/usr/local")):
        return "libaio's headers"
    beside = Path(sys.executable).parent / "ninja"  # a dependency of DeepSpeed's
    return "" if beside.exists() or shutil.which("ninja") else "ninja"
