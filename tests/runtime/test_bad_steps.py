"""Engines of every stage: bad steps change nothing, and flipped bits are found and named."""

import json
import math
from typing import Any

import pytest
import torch

from runtime.replicas import checksum
from tests.processes import run

CASES = [(stage, "fp32") for stage in range(4)] + [(stage, "bf16") for stage in (1, 2, 3)]


def work(stage: int, precision: str, ranks: int) -> dict[str, Any]:
    status, output = run(["tests/runtime/health_worker.py", str(stage), precision], ranks)
    assert status == 0, output
    found = json.loads(next(line for line in output.splitlines() if line.startswith('{"first"')))
    assert not found["first"]
    assert all(math.isfinite(loss) for loss in found["losses"])
    return found


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_on_two_ranks(stage: int, precision: str) -> None:
    """A fault on one rank: all skip the step, and not a bit of weights or moments changes."""
    found = work(stage, precision, 2)
    assert found["skipped"] == {
        fault: [["False"], True, True] for fault in ("nan loss", "inf gradient", "refused")
    }
    drift = found["drift"]
    assert drift["clean"] == []
    if stage == 0:  # two copies, and nothing to tell which is right
        assert drift["weight"] == [[None, "embedding.weight"]]
        assert drift["state"] == [[None, "embedding.weight (exp_avg_sq)"]]
    else:
        assert drift["weight"] == [[1, "embedding.weight"]]
        master = drift["name"] if stage == 3 else f"{drift['name']} (master)"
        assert drift["state"] == [[0, master]]


def test_of_three_copies_the_odd_one_is_named() -> None:
    found = work(0, "fp32", 4)
    assert found["drift"]["weight"] == [[1, "embedding.weight"]]
    assert found["drift"]["state"] == [[1, "embedding.weight (exp_avg_sq)"]]


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_on_one_rank(stage: int) -> None:
    found = work(stage, "fp32", 1)
    assert found["skipped"]["nan loss"] == [["False"], True, True]
    assert found["drift"]["clean"] == []


def test_every_flipped_bit_changes_the_checksum_wherever_a_slice_begins() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        whole = torch.randn(101, generator=generator).to(dtype)
        for start, end in ((0, 101), (1, 50), (3, 4), (5, 101), (8, 8)):
            piece = whole[start:end]
            want = int(checksum(piece))
            assert int(checksum(piece.clone())) == want
            data = piece.clone().view(torch.uint8)
            for byte in range(data.numel()):
                for bit in range(8):
                    data[byte] ^= 1 << bit
                    assert int(checksum(data.view(dtype))) != want
                    data[byte] ^= 1 << bit
