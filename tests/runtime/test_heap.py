"""What glibc does with freed memory, asked of processes of their own."""

import platform

import pytest

from tests.processes import run

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")

# 100 blocks of 400 kB each: above what glibc takes out of its heap at first.
STEPS = """
import resource, torch
from runtime import dist
dist.init("cpu", 60)
def step():
    blocks = [torch.ones(100_000) for _ in range(100)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
before = faults()
for _ in range(10):
    step()
print((faults() - before) / 10)
dist.shutdown()
"""


def pages_taken(**environment: str) -> float:
    """In a step after the first."""
    status, output = run(["-c", STEPS], **environment)
    assert status == 0, output
    return float(output.split()[-1])


def test_a_step_takes_no_memory_that_the_one_before_had(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert pages_taken() < 500  # of 10,000
    assert pages_taken(MALLOC_TRIM_THRESHOLD_="131072") > 5_000, "the user decides"


def test_free_memory_goes_back_to_the_system() -> None:
    code = """
import os, torch
from runtime import heap
heap.keep()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
blocks = [torch.ones(25_000) for _ in range(1_000)]  # 100 kB each
keeps = blocks.pop()
before = resident()
blocks.clear()
kept = before - resident()
heap.give_back()
print(kept, before - resident())
"""
    status, output = run(["-c", code])
    assert status == 0, output
    kept, given_back = map(int, output.split()[-2:])
    assert kept < 10e6
    assert given_back > 90e6
