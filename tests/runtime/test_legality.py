"""What does not go together is refused in a line, and everything else is not."""

import itertools
from typing import Any

import pytest

from runtime.legality import RULES, Combination, check_combination
from runtime.sections import Parallel


def problems(ranks: int = 4, **keys: Any) -> dict[str, str]:
    given = {"precision": "bf16", "compile": False, "device": "cpu", "kernels": "torch"}
    given["attention"] = "auto"
    given |= {name: keys.pop(name) for name in given.keys() & keys.keys()}
    found = check_combination(Combination(Parallel(**keys), ranks=ranks, **given))  # type: ignore[arg-type]
    return {problem.key: problem.message for problem in found}


HPZ = {"zero_stage": 3, "sharding": "hpz", "shard_ranks": 2}
NVME = {"offload_to": "nvme", "nvme_path": "/mnt/nvme"}

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"precision": "fp16"}, "precision", "write bf16 or fp32"),
    ({"kernels": "triton"}, "kernels", "needs a GPU, and this run is on a CPU; write torch"),
    ({"attention": "flash"}, "attention", "needs a GPU, and this run is on a CPU; write auto"),
    (
        {"attention": "cudnn", "precision": "fp32", "device": "cuda"},
        "attention",
        "takes 16-bit numbers alone",
    ),
    ({"zero_stage": 0}, "parallel.zero_stage", "stage 0 with bf16"),
    ({"zero_stage": 0, "precision": "fp32", "offload": "optimizer"}, "parallel.offload", "1, 2"),
    ({"zero_stage": 2, "offload": "all"}, "parallel.offload", "stage 2 keeps whole parameters"),
    ({"zero_stage": 3, **NVME}, "parallel.offload_to", "write offload: optimizer or all"),
    ({"zero_stage": 1, "offload": "optimizer", **NVME}, "parallel.offload_to", "write 3"),
    ({"zero_stage": 3, "offload": "all", "offload_to": "nvme"}, "parallel.nvme_path", "local disk"),
    ({**HPZ, "zero_stage": 2}, "parallel.sharding", "stage 2 does not shard parameters"),
    ({**HPZ, "shard_ranks": None}, "parallel.shard_ranks", "needs a number of ranks"),
    ({"zero_stage": 3, "shard_ranks": 2}, "parallel.shard_ranks", "write sharding: hpz"),
    ({**HPZ, "shard_ranks": 3}, "parallel.shard_ranks", "4 ranks do not split into groups of 3"),
    ({**HPZ, "offload": "all", **NVME}, "parallel.sharding", "the second copy"),
]


@pytest.mark.parametrize(("keys", "key", "told"), REFUSED)
def test_what_is_refused(keys: dict[str, Any], key: str, told: str) -> None:
    found = problems(**keys)
    assert set(found) == {key}, found
    assert told in found[key]
    assert "{" not in found[key]


def test_every_rule_is_broken_by_an_example() -> None:
    assert len(RULES) == len(REFUSED)


def test_what_is_tested_elsewhere_is_allowed() -> None:
    """Stage 3 with every place and sharding; stages 1 and 2 with the optimizer on the host."""
    places = [{}, {"offload": "optimizer"}, {"offload": "all"}, {"offload": "optimizer", **NVME}]
    for place, sharding in itertools.product(places, [{}, HPZ]):
        for precision in ("fp32", "bf16"):
            keys = {"zero_stage": 3, **place, **sharding}
            assert not problems(precision=precision, **keys)
    assert not problems(zero_stage=3, offload="all", **NVME)
    for stage in (1, 2):
        assert not problems(zero_stage=stage, offload="optimizer")
