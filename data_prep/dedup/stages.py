"""The order of the steps between signing and deciding, for any executor to map."""

import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data_prep.dedup.decisions import CUT, DROPPED, Settle, SettleParagraphs
from data_prep.dedup.job import Job
from data_prep.dedup.match_equal import MatchEqual
from data_prep.dedup.match_near import MatchNear


class Stage(NamedTuple):
    """A step whose parts may run anywhere and in any order; all are done before the next begins."""

    name: str
    task: Callable[[int], int]  # idempotent: what is done is not done again
    numbers: range


def stages(job: Job) -> Iterator[Stage]:
    """Yield one stage after the other; ask for the next when one is done.

    Nothing is left to do where every new unit is decided. Interrupted at any moment, the same job
    goes on: every file is either complete or absent.
    """
    config = job.config
    new = range(job.first_new, job.units)
    wanted = [DROPPED, CUT] if config.paragraphs.enabled else [DROPPED]
    if not all(job.file(unit, kind).exists() for unit in new for kind in wanted):
        exact = job.partitions("exact") if config.exact else 0
        near = job.partitions("bands") if config.near.enabled else 0
        if exact:
            yield Stage("equal documents", MatchEqual(job, "exact", exact), range(exact))
        if near:
            yield Stage("near duplicates", MatchNear(job, near), range(near))
        yield Stage("documents to drop", Settle(job, exact, near), new)
        if config.paragraphs.enabled:
            count = job.partitions("paragraphs")
            matched = MatchEqual(job, "paragraphs", count)
            yield Stage("equal paragraphs", matched, range(count))
            yield Stage("paragraphs to cut", SettleParagraphs(job, count), new)
    if job.scratch.exists():
        shutil.rmtree(job.scratch)
