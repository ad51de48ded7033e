"""Compile kernels for a card that is not here, as the real code would launch them.

`launches(do, capability)` runs `do`, which calls operations on CPU tensors, with Triton made to
believe in a card: everything up to a launch happens as on the card, types, alignments, block sizes
and warps, and the launch itself does not. What was compiled is returned, launch by launch.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Compiled(NamedTuple):
    """A kernel as the card would run it."""

    name: str
    warps: int
    registers: int  # of a thread
    spilled: int  # bytes of a thread for which there was no register
    ptx: str

    def widths(self, access: str) -> list[int]:
        """Bytes of each access to global memory in the code. access: "ld" or "st"."""
        found = re.findall(rf"{access}\.global\S*?(?:\.v(\d))?\.[bfus](\d+)\s", self.ptx)
        return [int(lanes or 1) * int(bits) // 8 for lanes, bits in found]


class _Card:
    """What Triton asks its driver for on the way to a launch."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return f"absent sm_{self.target.arch}"  # under which Triton keeps what it compiled

    def get_current_stream(self, device: str) -> int:
        return 0


def launches(do: Callable[[], Any], capability: int) -> list[Compiled]:
    """Run `do` without a card of that capability (80, 90); return what it would have launched."""
    found = []
    run = JITFunction.run

    def compile_alone(self: Any, *arguments: Any, **named: Any) -> Any:
        kernel = run(self, *arguments, **{**named, "warmup": True})
        found.append(_compiled(kernel))
        return kernel

    driver = mock.patch.object(type(triton.runtime.driver), "active", _Card(capability))
    with driver, mock.patch.object(JITFunction, "run", compile_alone):
        do()
    return found


def _compiled(kernel: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        told = subprocess.run(
            [TOOLS / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    usage = {name: int(count) for name, count in re.findall(r"\b([A-Z]+):(\d+)", told)}
    return Compiled(
        kernel.metadata.name,
        kernel.metadata.num_warps,
        usage["REG"],
        usage["STACK"] + usage["LOCAL"],
        kernel.asm["ptx"],
    )
