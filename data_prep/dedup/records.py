"""Sorted files of fixed-size records, made and read in bounded memory.

Keys are hashes, spread evenly over 64 bits: a partition is a range of keys, and the records of any
number of partitions are slices of the same file.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.atomic import aside, publish

Records = npt.NDArray[Any]

# Where a hash occurs: 128 bits of it (two equal ones by chance: 10⁻¹⁹ for 10¹⁰ paragraphs).
OCCURRENCE = np.dtype([("key", "<u8"), ("check", "<u8"), ("document", "<u4"), ("number", "<u4")])
# A band of a document's signature; `signature` is 32 bits of a hash of the whole one.
BAND = np.dtype([("key", "<u8"), ("signature", "<u4"), ("document", "<u4")])
# A document that equals an earlier one of its own unit.
COPY = np.dtype([("document", "<u4"), ("first", "<u4")])
# (unit, document [, paragraph]) repeats what (other_unit, other_document) has.
DECISION = np.dtype(
    [
        ("unit", "<u4"),
        ("document", "<u4"),
        ("number", "<u4"),
        ("near", "<u4"),  # 0: equal, 1: near
        ("other_unit", "<u4"),
        ("other_document", "<u4"),
        ("similarity", "<f4"),
    ]
)
_IN_MEMORY = 16 << 20  # bytes of records that are sorted at once
_RUNS = 64  # a spool that is larger is divided by the keys' uppermost bits into so many


class Spool:
    """Collects records in any order and writes them sorted by all their fields.

    Large ones wait on disk, divided by key, so that memory is a small part of the whole.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path, self._dtype = path, dtype
        self._held: list[Records] = []
        self._held_bytes = 0
        self._runs: list[Path] = []

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for path in self._runs:
            path.unlink(missing_ok=True)

    def add(self, records: Records) -> None:
        """Take some records in."""
        if len(records):
            self._held.append(records)
            self._held_bytes += records.nbytes
            if self._held_bytes >= _IN_MEMORY:
                self._spill()

    def finish(self, keep: Callable[[Records], Records] | None = None) -> None:
        """Publish the sorted file. `keep` chooses from sorted blocks; equal keys share a block."""
        temporary = aside(self._path)
        try:
            with temporary.open("wb") as stream:
                for block in self._sorted_blocks():
                    stream.write((keep(block) if keep else block).tobytes())
                publish(stream, temporary, self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _sorted_blocks(self) -> Iterator[Records]:
        if self._runs:
            self._spill()
            for path in self._runs:
                yield _sorted(np.fromfile(path, self._dtype))
        elif self._held:
            yield _sorted(np.concatenate(self._held))

    def _spill(self) -> None:
        if not self._runs:
            names = [self._path.with_name(f"{self._path.name}.{n}") for n in range(_RUNS)]
            self._runs = [aside(name) for name in names]
            for path in self._runs:
                path.write_bytes(b"")
        if not self._held:
            return
        records = np.concatenate(self._held)
        run = (records["key"] >> np.uint64(58)).astype(np.uint8)
        records = records[np.argsort(run, kind="stable")]
        ends = np.cumsum(np.bincount(run, minlength=_RUNS))
        for number, path in enumerate(self._runs):
            with path.open("ab") as stream:
                stream.write(records[ends[number - 1] if number else 0 : ends[number]].tobytes())
        self._held, self._held_bytes = [], 0


def _sorted(records: Records) -> Records:
    names = records.dtype.names
    assert names is not None, "records have named fields"
    return records[np.lexsort([records[name] for name in reversed(names)])]


def load(path: Path, dtype: np.dtype[Any], field: str, low: int, high: int) -> Records:
    """The records of a file sorted by `field` for which low ≤ field < high."""
    count = path.stat().st_size // dtype.itemsize
    if not count:
        return np.zeros(0, dtype)
    mapped = np.memmap(path, dtype, "r", shape=(count,))
    start = _bisect(mapped, field, low)
    return np.array(mapped[start : _bisect(mapped, field, high)])


def _bisect(mapped: Records, field: str, value: int) -> int:
    """The first record that is not below; touches a few pages of the file alone."""
    low, high = 0, len(mapped)
    while low < high:
        middle = (low + high) // 2
        if int(mapped[middle][field]) < value:
            low = middle + 1
        else:
            high = middle
    return low


def key_range(partition: int, partitions: int) -> tuple[int, int]:
    """Keys [low, high) of a partition."""
    return (partition << 64) // partitions, ((partition + 1) << 64) // partitions


def begins_group(*columns: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where sorted records differ from the one before in any of some columns."""
    begins = np.ones(len(columns[0]), np.bool_)
    begins[1:] = False
    for column in columns:
        begins[1:] |= column[1:] != column[:-1]
    return begins
