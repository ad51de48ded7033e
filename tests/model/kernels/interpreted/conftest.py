"""These tests need TRITON_INTERPRET=1 before triton is imported: test_interpreter.py runs them.

By hand: TRITON_INTERPRET=1 python -m pytest tests/model/kernels/interpreted
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Whatever an operation allocates is full of NaN, so that an element left out is seen."""
    new_empty = torch.Tensor.new_empty

    def poisoned(self, *shape, **options):
        found = new_empty(self, *shape, **options)
        return found.fill_(float("nan")) if found.is_floating_point() else found

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)
