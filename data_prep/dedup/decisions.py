"""What was decided about the documents of a unit: collected from the partitions, and read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.atomic import write_atomic
from data_prep.dedup.job import Job
from data_prep.dedup.records import COPY, DECISION, Records, begins_group, load
from data_prep.dedup.signatures import unit_file
from runtime.errors import UserError

DROPPED, CUT = "dropped", "cut"  # kinds of files: documents that go, paragraphs that go


class Duplicate(NamedTuple):
    """Why a document is dropped: what earlier one it repeats."""

    kind: str  # "exact" or "near"
    unit: int
    document: int
    similarity: float  # Jaccard, estimated; 1 for exact


class RemovedParagraph(NamedTuple):
    """A paragraph that is cut out, and the document that had it first."""

    paragraph: int
    unit: int
    document: int


class UnitDuplicates(NamedTuple):
    """The decisions about one unit, by the documents' numbers within it."""

    documents: dict[int, Duplicate]
    paragraphs: dict[int, list[RemovedParagraph]]  # only of documents that stay


@dataclass(frozen=True)
class Settle:
    """Collects the decisions about one unit's documents."""

    job: Job
    exact_partitions: int
    near_partitions: int

    def __call__(self, unit: int) -> int:
        """Publish the unit's decisions, where that is not done yet; returns its number."""
        job = self.job
        path = job.file(unit, DROPPED)
        if path.exists():
            return unit
        parts = []
        for kind, copies, count in (
            ("exact", "equals", self.exact_partitions),
            ("near", "copies", self.near_partitions),
        ):
            if count:
                decided = best(np.concatenate(list(_of_unit(job, kind, count, unit))))
                parts.append(_with_copies(job, unit, decided, copies))
        write_atomic(path, best(np.concatenate([np.zeros(0, DECISION), *parts])).tobytes())
        return unit


@dataclass(frozen=True)
class SettleParagraphs:
    """Collects the decisions about one unit's paragraphs."""

    job: Job
    partitions: int

    def __call__(self, unit: int) -> int:
        """Publish the unit's decisions, where that is not done yet; returns its number."""
        path = self.job.file(unit, CUT)
        if not path.exists():
            found = np.concatenate(list(_of_unit(self.job, "paragraphs", self.partitions, unit)))
            order = np.lexsort((found["number"], found["document"]))
            write_atomic(path, found[order].tobytes())
        return unit


def duplicates(directory: Path, unit: int) -> UnitDuplicates:
    """The decisions about one unit. Raises UserError where they were not made."""
    found = UnitDuplicates({}, {})
    try:
        for row in np.fromfile(unit_file(directory, unit, DROPPED), DECISION):
            found.documents[int(row["document"])] = Duplicate(
                "near" if row["near"] else "exact",
                int(row["other_unit"]),
                int(row["other_document"]),
                round(float(row["similarity"]), 4),
            )
    except FileNotFoundError as error:
        raise UserError(
            f"{directory}: duplicates of unit {unit} are not decided; run the same command again"
        ) from error
    path = unit_file(directory, unit, CUT)
    for row in np.fromfile(path, DECISION) if path.exists() else ():
        found.paragraphs.setdefault(int(row["document"]), []).append(
            RemovedParagraph(int(row["number"]), int(row["other_unit"]), int(row["other_document"]))
        )
    return found


def dropped_documents(job: Job, unit: int) -> npt.NDArray[np.uint32]:
    """The numbers of a unit's documents that go, in rising order."""
    documents: npt.NDArray[np.uint32] = np.fromfile(job.file(unit, DROPPED), DECISION)["document"]
    return documents


def best(decisions: Records) -> Records:
    """One for each document: equal before near, the most similar, the earliest of such."""
    keys: list[npt.NDArray[Any]] = [
        decisions["other_document"],
        decisions["other_unit"],
        -decisions["similarity"],
        decisions["near"],
        decisions["document"],
        decisions["unit"],
    ]
    decisions = decisions[np.lexsort(keys)]
    return decisions[begins_group(decisions["unit"], decisions["document"])]


def _of_unit(job: Job, kind: str, partitions: int, unit: int) -> Iterator[Records]:
    yield np.zeros(0, DECISION)
    for partition in range(partitions):
        yield load(job.decisions(kind, partition), DECISION, "unit", unit, unit + 1)


def _with_copies(job: Job, unit: int, decided: Records, kind: str) -> Records:
    """Add the documents that equal an earlier one of the unit: they follow that one.

    Where it is itself equal to an earlier unit's, both name that; so the cut into units shows in
    no decision.
    """
    copies = np.fromfile(job.file(unit, kind), COPY)
    added = np.zeros(len(copies), DECISION)
    added["unit"], added["document"] = unit, copies["document"]
    added["near"] = kind == "copies"
    added["other_unit"], added["other_document"] = unit, copies["first"]
    added["similarity"] = 1
    if len(decided):
        at = np.minimum(np.searchsorted(decided["document"], copies["first"]), len(decided) - 1)
        follows = decided["document"][at] == copies["first"]
        if not job.only_old:
            follows &= decided["similarity"][at] == 1
        for name in ("other_unit", "other_document", "similarity"):
            added[name][follows] = decided[name][at[follows]]
        added_by_old = follows
    else:
        added_by_old = np.zeros(len(copies), np.bool_)
    if job.only_old:
        added = added[added_by_old]
    return np.concatenate([decided, added])
