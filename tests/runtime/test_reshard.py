"""Any optimizer's state, written on one topology and loaded on another."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run

WORKER = "tests/runtime/reshard_worker.py"
RANKS = (1, 2)
TOPOLOGIES = 6  # of so many ranks

Found = dict[str, dict[str, Any]]  # by job, then by topology


def work(root: Path, optimizer: str, ranks: int, *jobs: str) -> Found:
    status, output = run([WORKER, str(root), optimizer, *jobs], ranks, timeout=600)
    assert status == 0, output
    found: Found = json.loads(next(line for line in output.splitlines() if line[:2] == '{"'))
    return found


@pytest.fixture(
    scope="module", params=["muon", "lion", pytest.param("adamw", marks=pytest.mark.nightly)]
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("reshard")
    found = [work(root, request.param, ranks, "write", "skip") for ranks in RANKS]
    both = {job: found[0][job] | found[1][job] for job in found[0]}
    return root, request.param, both


def test_steps_that_are_not_finite_leave_no_trace(written: Any) -> None:
    _, _, found = written
    assert len(found["write"]) == TOPOLOGIES * len(RANKS)
    assert found["skip"] == found["write"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
def test_every_state_goes_on_everywhere(written: Any, ranks: int) -> None:
    """Bit for bit on its own topology, to 1e-6 in the loss on every other; before a step too."""
    root, optimizer, found = written
    straight = found["write"]
    resumed = work(root, optimizer, ranks, "read")["read"]
    assert len(resumed) >= 5 * TOPOLOGIES
    same = 0
    for name, values in resumed.items():
        source, here = name.split(" → ")
        want = straight[here]
        assert values["losses"] == pytest.approx(want["losses"], rel=1e-6), name
        if source.removesuffix(" untrained") == here:
            assert values == want, name
            same += 1
    assert same == TOPOLOGIES + (ranks == 2)


def test_state_of_the_other_optimizer_is_refused_on_every_rank(written: Any) -> None:
    root, optimizer, _ = written
    other = "muon" if optimizer == "adamw" else "adamw"
    key = "exp_avg" if other == "adamw" else "momentum_buffer"
    for answers in work(root, other, 2, "refuse")["refuse"].values():
        # The same on both: none may go on to wait for the other.
        assert len(answers) == 2
        assert answers[0] == answers[1]
        assert answers[0].startswith("rank 0: ")
        assert f"the checkpoint has no {key} of " in answers[0]
        assert "restore optim.name" in answers[0]
