"""The documents that a step was made of, in few words: for a log line and a record of events."""

from collections.abc import Sequence
from typing import Any

from data_prep.samples import Seen
from data_prep.shards import Shards

MOST_RANGES = 16


def name_documents(
    shards: Sequence[Shards], seen: Sequence[Seen], most: int = MOST_RANGES
) -> list[dict[str, Any]]:
    """What `Loader.documents` found, source by source, as plain JSON.

    Each entry has `source` (the prepared directory), `split`, `count` (different documents) and
    `documents`: their numbers in the split as [first, last] ranges in rising order, at most so
    many; where there are more, `ranges` says how many in all.
    """
    found = []
    for number, source in enumerate(shards):
        ranges = _joined([one.documents for one in seen if one.source == number])
        if not ranges:
            continue
        entry: dict[str, Any] = {
            "source": str(source.directory),
            "split": source.split,
            "count": sum(map(len, ranges)),
            "documents": [[one.start, one.stop - 1] for one in ranges[:most]],
        }
        if len(ranges) > most:
            entry["ranges"] = len(ranges)
        found.append(entry)
    return found


def _joined(ranges: Sequence[range]) -> list[range]:
    """The numbers in any of some ranges, as few ranges in rising order."""
    joined: list[range] = []
    for one in sorted((one for one in ranges if one), key=lambda one: one.start):
        if joined and one.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, one.stop))
        else:
            joined.append(one)
    return joined
