"""What glibc does with freed memory, asked of processes of their own."""

import os
import platform

import pytest

from tests.processes import run

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")

BY_USER = {
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072",
}
# Blocks of 400 kB: above what glibc takes out of its heap at first.
STEPS = """
import resource, torch
from runtime import dist
from runtime.errors import leave
dist.init("cpu", 60)
def step():
    blocks = [torch.ones(100_000) for _ in range(100)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step(), step()
before = faults()
for _ in range(10):
    step()
print((faults() - before) / 10)
dist.shutdown()
leave(0)
"""
PAGES = 40_000_000 / os.sysconf("SC_PAGE_SIZE")  # of a step


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BY_USER:
        monkeypatch.delenv(name, raising=False)


def pages_taken(**environment: str) -> float:
    """In a step after the first ones."""
    status, output = run(["-c", STEPS], **environment)
    assert status == 0, output
    return float(output.split()[-1])


def test_a_step_takes_no_memory_that_the_one_before_had() -> None:
    assert pages_taken() < PAGES / 20
    other = {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=2048"}
    assert pages_taken(**other) < PAGES / 20, "says nothing of memory"


@pytest.mark.parametrize("name", BY_USER)
def test_the_user_decides(name: str) -> None:
    assert pages_taken(**{name: BY_USER[name]}) > PAGES / 2


def test_free_memory_goes_back_to_the_system() -> None:
    """Also from below what is still in use, which glibc returns for no threshold."""
    code = """
import os, torch
from runtime import heap
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
blocks = [torch.ones(25_000) for _ in range(1_000)]  # 100 kB each
keeps = blocks.pop()
before = resident()
blocks.clear()
heap.give_back()
print(before - resident())
"""
    status, output = run(["-c", code])
    assert status == 0, output
    assert int(output.split()[-1]) > 90e6
