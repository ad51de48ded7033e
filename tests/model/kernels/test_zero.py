"""Kernels take parameters that ZeRO-3 has whole only while their own module runs."""

import importlib.util
import json

import pytest

from tests.processes import run


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_partitioned_parameters() -> None:
    worker = ["tests/model/kernels/zero_worker.py"]
    status, output = run(worker, 2, timeout=580, TRITON_INTERPRET="1")
    assert status == 0, output
    found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert len(found) == 4
    for part, (loss, gradient, weights) in found.items():
        assert loss < 1e-5, (part, loss)
        assert gradient < 1e-4, (part, gradient)
        assert weights < 1e-4, (part, weights)
