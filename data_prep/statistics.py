"""How a run went: .statistics.json, and the lines at its end. Times differ from run to run, so
nothing here is part of the prepared data.
"""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.atomic import write_atomic
from data_prep.manifest import Manifest, to_json
from data_prep.tally import UnitReport

if TYPE_CHECKING:
    from data_prep.plan import Plan
    from data_prep.stages import Stage

NAME = ".statistics.json"  # hidden: not part of the data


class Statistics:
    """Counts what the stages of one run did; work that was done before is none of it."""

    def __init__(self, plan: "Plan") -> None:
        self._plan = plan
        self._started = time.monotonic()
        self._stages: dict[str, dict[str, Any]] = {}
        self._bytes = 0

    def add(self, stage: "Stage", number: int, report: UnitReport | None) -> None:
        """Count a task that has just finished."""
        now = time.monotonic()
        own = self._stages.setdefault(
            stage.name, {"tasks": 0, "input_bytes": 0, "documents": 0, "dropped": Counter()}
        )
        own["tasks"] += 1
        own["input_bytes"] += stage.weights[number]
        own["until_s"] = round(now - self._started, 3)
        if report:
            for segment in report.segments:
                own["documents"] += segment.records
                own["dropped"].update(segment.bad)
                own["dropped"].update(segment.dropped)
                if stage.name == "shards":
                    self._bytes += segment.text_bytes

    def save(self, output: Path, done: Manifest) -> None:
        """Write the file."""
        seconds = time.monotonic() - self._started
        content = {
            "seconds": round(seconds, 3),
            "text_bytes": self._bytes,
            "megabytes_per_second": round(self._bytes / 1e6 / seconds, 3),
            "documents": done.documents,
            "tokens": done.tokens,
            "dropped": done.dropped,
            "changed": done.changed,
            "executor": self._plan.config.executor,
            "workers": self._plan.config.workers,
            "stages": self._stages,
        }
        write_atomic(output / NAME, to_json(content))

    def tell(self, done: Manifest) -> None:
        """Print the run in a few lines."""
        seconds = time.monotonic() - self._started
        read = self._bytes / 1e6
        rate = f": {read:,.1f} MB of text, {read / seconds:.1f} MB/s" if self._bytes else ""
        print(f"prepared {self._plan.output} in {seconds:.1f} s{rate}")
        for split, counts in sorted(done.splits.items()):
            print(f"  {split}: {counts.documents:,} documents, {counts.tokens:,} tokens")
            if counts.unknown_tokens:
                print(f"  {split}: {counts.unknown_tokens:,} tokens stand for unknown text")
        for reason, count in sorted(done.changed.items()):
            print(f"  changed by {reason}: {count:,}")
        for reason, count in sorted(done.dropped.items()):
            where = "" if "/" in reason else f" (see {done.quarantine.file})"
            print(f"  dropped, {reason}: {count:,}{where}")
