"""A shard as the loader reads it: memory-mapped, none of its index in memory.

A run on thousands of shards has each of them open and touches a few places of each, so opening one
costs no pass over its index. That everything in it agrees is for data_prep.verify to find out,
which a run does before its first step.
"""

import mmap
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.indexed import MAGIC, VERSION
from runtime.errors import UserError

_HEADER = 34  # bytes before the lengths: docs/formats.md
_DTYPES: dict[int, np.dtype[Any]] = {
    4: np.dtype("<i4"),
    8: np.dtype("<u2"),
}  # the two that we write


class MappedShard:
    """One .bin/.idx pair of a prepared directory. `len()` counts documents.

    `tokens` (n,) uint16 or int32, memory-mapped. Raises UserError naming the file.
    """

    def __init__(self, prefix: Path) -> None:
        self._path = prefix.with_name(prefix.name + ".idx")
        raw = _map(self._path)
        head = raw[:_HEADER].tobytes()
        code, numbers = head[17:18], np.frombuffer(head[18:], dtype="<u8")
        magic_and_version = MAGIC + VERSION.to_bytes(8, "little")
        if head[:17] != magic_and_version or len(head) < _HEADER or code[0] not in _DTYPES:
            raise self._broken("is not the index of a prepared shard")
        sequences, bounds = (int(number) for number in numbers)
        if bounds < 1 or len(raw) != _HEADER + 12 * sequences + 8 * bounds:
            raise self._broken(f"has {len(raw)} bytes, which is not what its header says")
        dtype: np.dtype[Any] = _DTYPES[code[0]]
        pointers = _HEADER + 4 * sequences
        self._lengths: npt.NDArray[Any] = raw[_HEADER:pointers].view(
            "<i4"
        )  # of each sequence, tokens
        self._pointers: npt.NDArray[Any] = raw[pointers : pointers + 8 * sequences].view(
            "<i8"
        )  # of each, bytes
        self._documents: npt.NDArray[Any] = raw[pointers + 8 * sequences :].view(
            "<i8"
        )  # first sequence of each
        self._count, self._itemsize = bounds - 1, dtype.itemsize
        self._one_each = bounds - 1 == sequences
        self.tokens: npt.NDArray[Any] = _map(prefix.with_name(prefix.name + ".bin")).view(dtype)
        if int(self._documents[-1]) != sequences:
            raise self._broken(f"has document boundaries that do not end at {sequences}")

    def _broken(self, what: str) -> UserError:
        return UserError(f"{self._path}: {what}; prepare the data again")

    def __len__(self) -> int:
        return self._count

    def start(self, document: int) -> int:
        """The first token of a document; of the one after the last, the number of tokens."""
        if document == self._count:
            return len(self.tokens)
        sequence = document if self._one_each else int(self._documents[document])
        return int(self._pointers[sequence]) // self._itemsize

    def document_at(self, token: int) -> int:
        """The document that a token belongs to."""
        if self._one_each:
            return int(bisect_right(self._pointers, token * self._itemsize)) - 1
        return bisect_right(range(self._count), token, key=self.start) - 1

    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of every document. (documents,)"""
        if self._one_each:
            return self._lengths.astype(np.int32)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._lengths, dtype=np.int64)])
        found: npt.NDArray[np.int32] = np.diff(ends[self._documents]).astype(np.int32)
        return found

    def __getitem__(self, document: int) -> npt.NDArray[Any]:
        """Token ids of one document, memory-mapped. (n,)"""
        found: npt.NDArray[Any] = self.tokens[self.start(document) : self.start(document + 1)]
        return found

    def sequence_ends(self, document: int) -> npt.NDArray[np.int64]:
        """Where a document's sequences end, counted from its start; the last is its length."""
        first, last = self._documents[document : document + 2]
        return np.cumsum(self._lengths[first:last], dtype=np.int64)


def _map(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):  # an empty file cannot be mapped
                return np.zeros(0, np.uint8)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return np.frombuffer(mapped, dtype=np.uint8)
