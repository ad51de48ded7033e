"""Run the tests of `interpreted/` in a process of their own, once."""

import importlib.util
from pathlib import Path

import pytest

from tests.processes import run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
HERE = Path(__file__).parent


@pytest.mark.slow
def test_the_kernels_are_their_references() -> None:
    """Triton reads TRITON_INTERPRET when it is imported, and here it may be already."""
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted")]
    status, output = run(arguments, timeout=580, TRITON_INTERPRET="1")
    assert status == 0, output
    assert " passed" in output
    assert "skipped" not in output
