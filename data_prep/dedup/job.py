"""What is compared with what, and where the results of its steps lie."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.atomic import write_atomic
from data_prep.dedup.records import DECISION, Records
from data_prep.dedup.signatures import unit_file
from data_prep.dedup_config import DedupConfig

PARTITION_BYTES = 32 << 20  # of records that are matched at once; memory is some times as much


@dataclass(frozen=True)
class Job:
    """One deduplication of units 0 … units − 1, whose signature files are all in `directory`.

    Units before `first_new` were decided by an earlier job; they only count as earlier ones. With
    `only_old` they alone do: new units are not compared among themselves.
    """

    directory: Path
    units: int
    config: DedupConfig
    first_new: int = 0
    only_old: bool = False

    @property
    def scratch(self) -> Path:
        """Where the partitions' decisions wait until the units have collected them."""
        return self.directory / f"match_{self.first_new:05d}_{self.units:05d}"

    def partitions(self, kind: str) -> int:
        """How many partitions a kind of records is matched in; decides memory, no result."""
        sizes = (self.file(unit, kind).stat().st_size for unit in range(self.units))
        return max(1, -(-sum(sizes) // PARTITION_BYTES))

    def file(self, unit: int, kind: str) -> Path:
        """A file of a unit."""
        return unit_file(self.directory, unit, kind)

    def decisions(self, kind: str, partition: int) -> Path:
        """Where a partition's decisions lie."""
        return self.scratch / f"{kind}_{partition:05d}"

    def is_earlier(self, unit: int) -> bool:
        """Whether others may be found to repeat this unit."""
        return not self.only_old or unit < self.first_new


def write_decisions(path: Path, parts: Iterable[Records]) -> None:
    """Publish decisions, sorted by (unit, document, number)."""
    found = np.concatenate([np.zeros(0, DECISION), *parts])
    order = np.lexsort((found["number"], found["document"], found["unit"]))
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, found[order].tobytes())
