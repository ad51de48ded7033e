"""B3: runs go on with other numbers of ranks and other ZeRO stages."""

import itertools
import shutil
from pathlib import Path

import pytest

from tests.faults.runs import Runs, losses

STEPS = 40
TOPOLOGIES = [(ranks, stage) for ranks in (1, 2, 4) for stage in (0, 1, 2, 3)]
# Dropout's draws belong to a rank; the other schedules depend on the number of steps.
KEYS = {
    "model__dropout": 0.0,
    "schedule__kind": "constant",
    "checkpoint__every_steps": 0,
    "batch__micro_batch_size": 2,
}


def stretch(runs: Runs, name: str, topology: tuple[int, int], last: int, first: int = 0) -> None:
    """Train on from step `first` to `last`, and keep which rows each step saw."""
    ranks, stage = topology
    config = runs.config(name, steps=last, parallel__zero_stage=stage, **KEYS)
    faults = [
        {"kind": "record_rows", "rank": r, "path": str(runs.directory / f"{name}_{first}_{r}")}
        for r in range(ranks)
    ]
    runs.finish(config, ranks=ranks, faults=faults)


def rows(directory: Path, name: str) -> dict[int, list[str]]:
    """The rows of each step's global batch in order, from what each rank wrote down."""
    found: dict[int, list[str]] = {}
    for path in sorted(directory.glob(f"{name}_*_*"), key=lambda p: p.name.split("_")[1:]):
        first = int(path.name.split("_")[1])
        for line in path.read_text().splitlines():
            step, _, digest = line.split()
            found.setdefault(first + int(step), []).append(digest)
    return found


def assert_alike(runs: Runs, calm: Runs, name: str, first: int = 0) -> None:
    expected, found = losses(calm.path("calm")), losses(runs.path(name))
    assert list(found) == list(range(1, STEPS + 1))
    worst = max(abs(found[s] - expected[s]) / expected[s] for s in expected)
    assert worst <= 1e-6, f"relative difference {worst:.1e}"
    same = {s: r for s, r in rows(calm.directory, "calm").items() if s > first}
    assert rows(runs.directory, name) == same, "other samples"


@pytest.fixture(scope="module")
def calm(server, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Forty steps on one rank without ZeRO."""
    runs = Runs(server, corpus, tmp_path_factory.mktemp("calm"))
    stretch(runs, "calm", (1, 0), STEPS)
    assert len({row for step in rows(runs.directory, "calm").values() for row in step}) > 250
    return runs


def test_a_run_that_passes_through_all_topologies(runs: Runs, calm: Runs) -> None:
    """Twelve stretches, so that each of the twelve is both left and taken up."""
    order = [(1, 0), (2, 1), (4, 2), (1, 3), (4, 0), (2, 3), (1, 1), (2, 2), (4, 3), (1, 2)]
    order += [(4, 1), (2, 0)]
    assert sorted(order) == TOPOLOGIES
    ends = [*range(4, 35, 3), STEPS]
    for first, last, topology in zip([0, *ends], ends, order, strict=False):
        stretch(runs, "passing", topology, last, first)
    assert_alike(runs, calm, "passing")


@pytest.mark.nightly
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("before", TOPOLOGIES, ids=str)
def test_every_pair_of_topologies(runs: Runs, calm: Runs, before: tuple[int, int]) -> None:
    """From each of the twelve to each of the twelve, after twenty steps."""
    stretch(runs, "start", before, STEPS // 2)
    for after, number in zip(TOPOLOGIES, itertools.count()):
        name = f"pair{number}"
        shutil.copytree(runs.path("start"), runs.path(name))
        stretch(runs, name, after, STEPS, STEPS // 2)
        assert_alike(runs, calm, name, first=STEPS // 2)
        shutil.rmtree(runs.path(name))
