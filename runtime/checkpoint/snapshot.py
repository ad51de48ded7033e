"""What a save writes, copied to host memory so that training may go on."""

import mmap
import weakref
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import torch

from runtime.checkpoint.slices import slice_name
from runtime.dist import Ranks
from runtime.zero_layout import Slice


class Trained(Protocol):
    """What is saved: an engine, or a trainer with its parts."""

    @property
    def ranks(self) -> Ranks:
        """This process among the others."""
        ...

    def full_parameters(self, wanted: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Those parameters by name, whole, each valid until the next is asked for. Collective."""
        ...

    def optimizer_slices(self) -> Iterator[Slice]:
        """This rank's part of master weights and moments."""
        ...

    def optimizer_steps(self) -> int:
        """How many steps the optimizer has counted."""
        ...

    def parameter_shapes(self) -> dict[str, list[int]]:
        """The shape of each whole parameter by name."""
        ...


class Snapshot(NamedTuple):
    """One rank's part of a step, in host memory."""

    slices: dict[str, torch.Tensor]  # 1-D, by their names in the file
    parameters: dict[str, torch.Tensor]  # whole, of the model's files that this rank writes

    @property
    def nbytes(self) -> int:
        """Bytes that this rank will write, but for what is small."""
        return sum(t.nbytes for part in (self.slices, self.parameters) for t in part.values())


class HostMemory:
    """Room for snapshots, taken at the first and used again by all later ones.

    New memory is made page by page when it is first touched, which takes several times longer than
    the copy into it.
    """

    def __init__(self) -> None:
        self._rooms: dict[str, torch.Tensor] = {}

    def snapshot(self, trained: Trained, wanted: Collection[str]) -> Snapshot:
        """Copy this rank's part. Collective under ZeRO-3. The last snapshot's content is gone."""
        slices = {
            name: self._copy(name, s.tensor)
            for s in trained.optimizer_slices()
            for name in [slice_name(s.parameter, s.key, s.start)]
        }
        parameters = {
            name: self._copy(name, tensor) for name, tensor in trained.full_parameters(wanted)
        }
        return Snapshot(slices, parameters)

    def _copy(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        room = self._rooms.get(name)
        if room is None or room.shape != tensor.shape or room.dtype != tensor.dtype:
            room = _new_room(tensor)
            self._rooms[name] = room
        return room.copy_(tensor.detach())


def _new_room(tensor: torch.Tensor) -> torch.Tensor:
    """Host memory for a tensor: in huge pages, and locked where a GPU copies into it."""
    if tensor.nbytes == 0:
        return torch.empty_like(tensor, device="cpu")
    memory = mmap.mmap(-1, tensor.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    room = torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)
    if tensor.is_cuda:
        # torch's own pinned memory would take the next power of two.
        cuda: Any = torch.cuda
        runtime = cuda.cudart()
        address = room.data_ptr()
        if int(runtime.cudaHostRegister(address, tensor.nbytes, 0)) == 0:
            weakref.finalize(memory, runtime.cudaHostUnregister, address)
    return room
