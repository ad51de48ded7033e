"""Settings that every test shares."""

import os
from collections.abc import Iterator

import pytest

# Small tensors: more threads than one only wait for each other. Also keeps sums in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module", autouse=True)
def _environment_is_left_as_it_was() -> Iterator[None]:
    """An engine leaves LOCAL_RANK, which others take for a launch; files come in any order."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
