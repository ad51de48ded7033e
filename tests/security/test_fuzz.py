"""X2: ten thousand damaged headers and documents; no crash, bounded memory, typed errors alone."""

import json
import shutil
from pathlib import Path

import pytest

from tests.faults.harness import ForkServer
from tests.faults.runs import Runs

PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_ten_thousand_damaged_files(
    part: int, runs: Runs, server: ForkServer, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "step_00000002"
    shutil.copytree(runs.checkpoints("good") / "step_00000002", checkpoint)
    shutil.copytree(runs.corpus, tmp_path / "data")
    arguments = [checkpoint, tmp_path / "data", part, 10_000 // PARTS]
    run = server.start(arguments, target="tests.security.fuzz_worker:main")
    assert run.wait(550) == [0], run.output()  # minutes on a busy machine
    told = json.loads(run[0].output().strip().splitlines()[-1])
    assert len(told) == 7
    for name, found in told.items():
        assert found["refused"] > found["taken"], f"{name}: {found}"  # the damage is real
        assert found["taken"] > 0, f"{name}: {found}"  # and not all of it is gross
