"""What hardware is here, asked without importing torch, for checks that must be fast."""

import os
import platform
import shutil
from pathlib import Path


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA GPU is visible to this process (driver device files, not hidden)."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()  # dxg: under Windows


def device_type(device: str) -> str:
    """`auto` | `cpu` | `cuda` → `cpu` | `cuda`, as the run will find it."""
    if device == "auto":
        return "cuda" if has_nvidia_gpu() else "cpu"
    return device


def has_cpp_compiler() -> bool:
    """Whether torch.compile could build its CPU kernels."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def cpu_flags() -> list[str]:
    """What the processor's instructions are, as Linux names them; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return sorted(found[0]) if found else []


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor as its maker calls it; `unknown` where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
