"""Equal documents and paragraphs: what an earlier unit already has, partition by partition."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.dedup.decisions import dropped_documents
from data_prep.dedup.job import Job, write_decisions
from data_prep.dedup.records import (
    DECISION,
    OCCURRENCE,
    Records,
    begins_group,
    key_range,
    load,
)

_SEEN = np.dtype([("key", "<u8"), ("check", "<u8"), ("unit", "<u4"), ("document", "<u4")])


@dataclass(frozen=True)
class MatchEqual:
    """Goes through a partition's records unit by unit; memory: its different hashes.

    `kind` is "exact" (whole documents) or "paragraphs" (those of documents that are kept: what is
    dropped with its document must not make a later one lose its only copy).
    """

    job: Job
    kind: str
    partitions: int

    def __call__(self, partition: int) -> int:
        """Match one partition, where that is not done yet; returns its number."""
        job, path = self.job, self.job.decisions(self.kind, partition)
        if path.exists():
            return partition
        low, high = key_range(partition, self.partitions)
        seen = _Seen()
        found: list[Records] = []
        for unit in range(job.units):
            records = load(job.file(unit, self.kind), OCCURRENCE, "key", low, high)
            if self.kind == "paragraphs" and len(records):
                gone = dropped_documents(job, unit)
                records = records[~np.isin(records["document"], gone)]
            if not len(records):
                continue
            begins = begins_group(records["key"], records["check"])
            leaders = np.flatnonzero(begins)
            earlier, originals = seen.find(records[leaders])
            if unit >= job.first_new:
                found.append(_decide(unit, records, begins, earlier, originals))
            if job.is_earlier(unit):
                seen.add(unit, records[leaders[~earlier]])
        write_decisions(path, found)
        return partition


def _decide(
    unit: int,
    records: Records,
    begins: npt.NDArray[np.bool_],
    earlier: npt.NDArray[np.bool_],
    originals: Records,
) -> Records:
    """Every record but the first of its hash repeats something.

    `begins` marks the first of each hash in the unit; for each of those, `earlier` says whether an
    earlier unit has it, and `originals` where.
    """
    group = np.cumsum(begins) - 1
    repeats = ~begins | earlier[group]
    group, later = group[repeats], records[repeats]
    first = records[begins]
    decisions = np.zeros(len(later), DECISION)
    decisions["unit"] = unit
    decisions["document"], decisions["number"] = later["document"], later["number"]
    before = earlier[group]
    decisions["other_unit"] = np.where(before, originals["unit"][group], unit)
    decisions["other_document"] = np.where(
        before, originals["document"][group], first["document"][group]
    )
    decisions["similarity"] = 1
    return decisions


class _Seen:
    """Where each hash occurred first: sorted runs of growing size, merged as they grow."""

    def __init__(self) -> None:
        self._runs: list[Records] = []

    def find(self, records: Records) -> tuple[npt.NDArray[np.bool_], Records]:
        """Which of some records occurred before, and where (undefined for the others)."""
        found = np.zeros(len(records), np.bool_)
        where = np.zeros(len(records), _SEEN)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run["key"], records["key"]), len(run) - 1)
            same = (run["key"][at] == records["key"]) & (run["check"][at] == records["check"])
            where[same] = run[at[same]]
            found |= same
        return found, where

    def add(self, unit: int, records: Records) -> None:
        """Remember records that did not occur before; their keys are sorted."""
        if not len(records):
            return
        run = np.zeros(len(records), _SEEN)
        run["key"], run["check"] = records["key"], records["check"]
        run["unit"], run["document"] = unit, records["document"]
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run = run[np.argsort(run["key"], kind="stable")]
        self._runs.append(run)
