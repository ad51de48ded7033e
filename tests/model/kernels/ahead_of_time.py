"""Compile a kernel for a card that is not here, as the real code would launch it.

`launched(do, capability)` runs `do`, which calls an operation on CPU tensors, with Triton made to
believe in a card of that capability: everything up to the launch happens, types, alignments, block
sizes and warps as on the card, and the launch does not. What each kernel became is returned.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class Compiled(NamedTuple):
    """A kernel as the card would run it."""

    name: str
    warps: int
    registers: int  # of a thread
    spilled: int  # bytes of a thread that found no register
    ptx: str

    def widths(self, access: str) -> list[int]:
        """Bytes of each access to global memory, in order. access: "ld" or "st"."""
        found = re.findall(rf"{access}\.global\S*?(?:\.v(\d))?\.[bfus](\d+)\s", self.ptx)
        return [int(lanes or 1) * int(bits) // 8 for lanes, bits in found]


class _Card:
    """What Triton asks its driver for, up to the launch."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> tuple[str, int]:
        return ("absent", self.target.arch)  # the key under which kernels are kept

    def get_current_stream(self, device: object) -> int:
        return 0


def launched(do: Callable[[], Any], capability: int) -> list[Compiled]:
    """Run `do` without a card; return what each of its launches compiled to, in order."""
    found = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, **named: Any) -> Any:
        kernel = run(self, *arguments, **{**named, "warmup": True})
        found.append(_compiled(kernel))
        return kernel

    driver = mock.patch.object(type(triton.runtime.driver), "active", _Card(capability))
    with driver, mock.patch.object(JITFunction, "run", compile_only):
        do()
    return found


def _compiled(kernel: Any) -> Compiled:
    usage = _usage(kernel.asm["cubin"])
    return Compiled(
        kernel.metadata.name,
        kernel.metadata.num_warps,
        usage["REG"],
        usage["LOCAL"] + usage["STACK"],
        kernel.asm["ptx"],
    )


def _usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    path = Path("/tmp/exp/kern/k.cubin")
    path.write_bytes(cubin)
    done = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True)
    return {name: int(count) for name, count in re.findall(r"(\w+):(\d+)", done.stdout)}
