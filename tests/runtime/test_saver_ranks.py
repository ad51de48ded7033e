"""Two ranks agree on every attempt, on failure, and on the checkpoint that both verified."""

import json

from runtime.checkpoint import list_checkpoints, verify
from runtime.errors import EXIT_IO
from tests.processes import run


def test_ranks_agree(tmp_path):
    root = tmp_path / "checkpoints"
    status, output = run(["-m", "tests.runtime.saver_worker", str(root)], 2)
    assert status == 0, output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"rank"')]
    assert sorted(line["rank"] for line in lines) == [0, 1]
    for line in lines:
        # One rank's disk failed: both tried again, and both gave up.
        assert line["tried_again"] == 2
        assert line["status"] == EXIT_IO
        assert "rank 1: " in line["error"]
        assert "step 3 is intact" in line["error"]
        assert line["committed"] == 3
        # The newest is damaged in a file that only one of them read: both take the one before.
        assert line["newest"] == 2
    assert "checkpoint passed over" in output
    # Of each checkpoint's five files each rank read some, and no file was read twice.
    files = ["config.json", "optimizer_00000.safetensors", "optimizer_00001.safetensors"]
    files += ["state.json", "weight.bin"]
    assert all(line["hashed"] for line in lines)
    assert sorted(lines[0]["hashed"] + lines[1]["hashed"]) == sorted(files * 2)
    assert [info.step for info in list_checkpoints(root)] == [1, 2, 3]
    assert verify(root / "step_00000001") == []
    assert [p.name for p in root.glob(".*")] == []
