"""Near duplicates: documents that share a band, compared by their signatures.

A document is compared with the first and with the last few earlier documents of each of its bands,
never with all: a band that 100,000 documents share costs 100,000 × a few comparisons. Who is
compared with whom depends on earlier documents alone, so later additions change no decision.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.dedup.decisions import best
from data_prep.dedup.job import Job, write_decisions
from data_prep.dedup.minhash import U8, similarity
from data_prep.dedup.records import BAND, DECISION, Records, begins_group, key_range, load
from data_prep.dedup.words import U64

RECENT = 8  # the last earlier documents of a band that a document is compared with
_PAIRS = 1 << 16  # compared at once
_MEMBER = np.dtype([*BAND.descr, ("unit", "<u4")])


@dataclass(frozen=True)
class MatchNear:
    """Matches the bands of one partition of keys."""

    job: Job
    partitions: int

    def __call__(self, partition: int) -> int:
        """Match one partition, where that is not done yet; returns its number."""
        path = self.job.decisions("near", partition)
        if not path.exists():
            low, high = key_range(partition, self.partitions)
            members = self._members(low, high)
            write_decisions(path, [best(np.concatenate(list(self._decisions(members))))])
        return partition

    def _members(self, low: int, high: int) -> Records:
        """The records whose band others share, sorted by (key, unit, document)."""
        parts = [np.zeros(0, _MEMBER)]
        for unit in range(self.job.units):
            records = load(self.job.file(unit, "bands"), BAND, "key", low, high)
            # The file is sorted by signature before document: here the order is that of documents.
            records = records[np.lexsort((records["document"], records["key"]))]
            members = np.zeros(len(records), _MEMBER)
            for name in ("key", "signature", "document"):
                members[name] = records[name]
            members["unit"] = unit
            parts.append(members)
        members = np.concatenate(parts)
        members = members[np.argsort(members["key"], kind="stable")]
        begins = begins_group(members["key"])
        alone = begins & np.append(begins[1:], True) if len(begins) else begins
        return members[~alone]

    def _decisions(self, members: Records) -> Iterator[Records]:
        yield np.zeros(0, DECISION)
        leader = _first_of_signature(members)
        is_new = members["unit"] >= self.job.first_new
        is_copy = leader != np.arange(len(members))
        if self.job.only_old:
            is_copy &= ~is_new[leader]
        copies = np.flatnonzero(is_copy & is_new)
        yield _decisions(members, copies, leader[copies], np.ones(len(copies), np.float32))
        members, is_new = members[~is_copy], is_new[~is_copy]
        for later, earlier in self._pairs(members, is_new):
            estimated = self._similarity(members, later, earlier)
            alike = estimated >= self.job.config.near.min_similarity
            yield _decisions(members, later[alike], earlier[alike], estimated[alike])

    def _pairs(
        self, members: Records, is_new: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yield (later, earlier) members to compare: with the first, and with the last few."""
        begins = begins_group(members["key"])
        places = np.arange(len(members))
        first = np.maximum.accumulate(np.where(begins, places, 0)) if len(places) else places
        before = places  # one behind the last that a member may be compared with
        if self.job.only_old:
            new_before: npt.NDArray[np.int64] = np.cumsum(is_new) - is_new
            before = places - (new_before - new_before[first])
        candidates = np.flatnonzero(is_new & (before > first))
        yield from self._cut(members, candidates, first[candidates])
        for back in range(1, RECENT + 1):
            candidates = candidates[before[candidates] - back > first[candidates]]
            yield from self._cut(members, candidates, before[candidates] - back)

    @staticmethod
    def _cut(
        members: Records, later: npt.NDArray[np.int64], earlier: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Leave out pairs that meet in several bands, and yield the rest in bounded numbers."""
        one, two = _identity(members[later]), _identity(members[earlier])
        order = np.lexsort((two, one))
        order = order[begins_group(one[order], two[order])] if len(order) else order
        for start in range(0, len(order), _PAIRS):
            chosen = order[start : start + _PAIRS]
            yield later[chosen], earlier[chosen]

    def _similarity(
        self,
        members: Records,
        later: npt.NDArray[np.int64],
        earlier: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        return similarity(self._rows(members[later]), self._rows(members[earlier]))

    def _rows(self, members: Records) -> U8:
        """Rows of the units' signature files: (members, hashes)."""
        width = self.job.config.near.hashes
        rows = np.empty((len(members), width), np.uint8)
        order = np.argsort(members["unit"], kind="stable")
        starts = np.flatnonzero(begins_group(members["unit"][order])) if len(order) else order
        for part in np.split(order, starts[1:]):
            if len(part):
                path = self.job.file(int(members["unit"][part[0]]), "signatures")
                rows[part] = np.memmap(path, np.uint8, "r").reshape(-1, width)[
                    members["document"][part]
                ]
        return rows


def _first_of_signature(members: Records) -> npt.NDArray[np.int64]:
    """For each member, the first of the same band and the same whole signature."""
    order = np.lexsort((members["signature"], members["key"]))  # stable: earliest first
    begins = begins_group(members["key"][order], members["signature"][order])
    heads = (
        np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0)) if len(order) else order
    )
    leader = np.empty(len(order), np.int64)
    leader[order] = order[heads]
    return leader


def _identity(members: Records) -> U64:
    """(unit, document) as one number, in the same order."""
    numbers: U64 = members["unit"].astype(np.uint64)
    numbers <<= np.uint64(32)
    numbers |= members["document"]
    return numbers


def _decisions(
    members: Records,
    later: npt.NDArray[np.int64],
    earlier: npt.NDArray[np.int64],
    estimated: npt.NDArray[np.float32],
) -> Records:
    decisions = np.zeros(len(later), DECISION)
    decisions["unit"], decisions["document"] = members["unit"][later], members["document"][later]
    decisions["near"] = 1
    decisions["other_unit"] = members["unit"][earlier]
    decisions["other_document"] = members["document"][earlier]
    decisions["similarity"] = estimated
    return decisions
