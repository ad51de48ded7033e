"""metrics.jsonl and events.jsonl: one JSON object per record. Torch-free, for reports."""

from pathlib import Path
from typing import Any

import orjson


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records of a metrics file; a last line cut by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            records.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return records


def keep_until(path: Path, step: int) -> None:
    """Drop the records after a step (and a torn last line), replacing the file atomically."""
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in kept))
    temporary.replace(path)
