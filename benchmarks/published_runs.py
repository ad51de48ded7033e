"""The model of a step against published runs: rank order, and the error of each row.

Needs no GPU: it compares what launch/estimate predicts with what others measured and published
(launch/plan/published.py says who, and what had to be assumed). The same table as
`python -m launch plan --published`; --json writes it with its summary.

    python benchmarks/published_runs.py [--json benchmarks/results/published_runs.json]
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.plan.compare import as_records, compare_all, groups, tables
from launch.plan.published import NOT_COMPARED


def main() -> None:
    """Compare, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = compare_all()
    print("\n".join(tables(found)))
    if options.json:
        result = {
            "groups": [group._asdict() for group in groups(found)],
            "not_compared": NOT_COMPARED,
            "runs": as_records(found),
        }
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
