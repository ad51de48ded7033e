"""`python -m runtime.checkpoint list|verify|prune`."""

import json

import orjson
import pytest

from runtime.checkpoint import list_checkpoints
from runtime.checkpoint.__main__ import main
from runtime.checkpoint.format import MANIFEST, hash_file, step_dir
from tests.runtime.test_checkpoint_format import make


@pytest.fixture
def run_dir(tmp_path):
    """A run with six checkpoints, every third of which is kept."""
    root = tmp_path / "run" / "checkpoints"
    for step in range(100, 700, 100):
        path = make(root, step)
        state = {
            "step": step,
            "tokens_seen": step * 4096,
            "world_size": 4,
            "config": {"parallel": {"zero_stage": 2}, "checkpoint": {"keep_every": 300}},
        }
        file = path / "training" / "state.json"
        file.write_text(json.dumps(state))
        manifest = orjson.loads((path / MANIFEST).read_bytes())
        entry = {"size": file.stat().st_size, "sha256": hash_file(file)}
        manifest["files"]["training/state.json"] = entry
        (path / MANIFEST).write_bytes(orjson.dumps(manifest))
    return tmp_path / "run"


def steps(run_dir):
    return [info.step for info in list_checkpoints(run_dir / "checkpoints")]


def test_list_says_what_there_is(run_dir, capsys):
    assert main(["list", str(run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["step", "size", "saved", "tokens", "seen", "ranks", "ZeRO", "kept"]
    third = lines[3].split()
    assert [third[0], third[5], third[6], third[7], third[8]] == [
        *("300", "1,228,800", "4", "2"),
        "keep_every",
    ]
    assert "keep_every" not in lines[1]
    assert main(["list", str(step_dir(run_dir / "checkpoints", 200))]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    (step_dir(run_dir / "checkpoints", 200) / MANIFEST).write_text("{")
    assert main(["list", str(run_dir / "checkpoints")]) == 1
    assert "damaged" in capsys.readouterr().out.splitlines()[2]


def test_verify_names_every_problem(run_dir, capsys):
    assert main(["verify", str(run_dir)]) == 0
    assert capsys.readouterr().out.count(": whole") == 6
    path = step_dir(run_dir / "checkpoints", 300)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").unlink()
    (path / "more").touch()
    assert main(["verify", str(run_dir)]) == 1
    output = capsys.readouterr().out
    assert output.count(": whole") == 5
    assert all(str(path / name) in output for name in ("config.json", "model.safetensors", "more"))
    assert main(["verify", str(path)]) == 1
    assert main(["verify", str(step_dir(run_dir / "checkpoints", 400))]) == 0


def test_prune_leaves_two_whole_ones(run_dir, capsys):
    arguments = ["prune", str(run_dir), "--keep-last", "2"]
    leftover = run_dir / "checkpoints" / ".tmp_step_00000700"
    leftover.mkdir()
    assert main([*arguments, "--keep-every", "300", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would delete") == 3
    assert leftover.exists()
    assert steps(run_dir) == [100, 200, 300, 400, 500, 600]
    (step_dir(run_dir / "checkpoints", 500) / "config.json").write_text("{}")
    assert main([*arguments, "--keep-every", "200"]) == 0
    assert "4 of 6 checkpoints stay" in capsys.readouterr().out
    assert steps(run_dir) == [200, 400, 500, 600]
    assert leftover.exists()  # it may be a save in flight; a start of the run sweeps it
    assert main(arguments) == 0
    assert steps(run_dir) == [400, 500, 600]  # 500 is damaged


@pytest.mark.parametrize(
    "arguments", [["--keep-last", "1"], ["--keep-last", "2", "--keep-every", "-1"]]
)
def test_prune_refuses_to_leave_one(run_dir, arguments, capsys):
    assert main(["prune", str(run_dir), *arguments]) == 2
    assert "expected at least 2" in capsys.readouterr().err
    assert len(steps(run_dir)) == 6


def test_mistakes_are_told_in_a_line(run_dir, tmp_path, capsys):
    assert main(["list", str(tmp_path / "none")]) == 2
    assert main(["verify", str(tmp_path)]) == 2
    one = step_dir(run_dir / "checkpoints", 200)
    assert main(["prune", str(one), "--keep-last", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert ["no such directory" in lines[0], "no checkpoint" in lines[1]] == [True, True]
    assert "name the folder" in lines[2]
