"""Our checkpoint and DeepSpeed's own of one training state, against each other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file

from runtime.checkpoint.export import export
from runtime.checkpoint.format import MANIFEST
from runtime.checkpoint.reader import TrainingState
from runtime.deepspeed_checkpoint import open_checkpoint
from runtime.errors import UserError
from tests.processes import run
from tests.security.hostile import sign

WORKER = "tests/runtime/checkpoint_worker.py"


@pytest.fixture(scope="module", params=[(2, 1), (2, 2), (2, 3), (1, 3)], ids=str)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Three steps in bf16, whose weights differ from their master weights."""
    ranks, stage = request.param
    root = tmp_path_factory.mktemp("both")
    arguments = [WORKER, str(root), str(stage), "bf16", "0", "3", str(root / "deepspeed")]
    status, output = run(arguments, ranks)
    assert status == 0, output
    return root / "step_00000003", root / "deepspeed"


def test_an_export_is_what_zero_to_fp32_gives(both: tuple[Path, Path], tmp_path: Path) -> None:
    ours, theirs = both
    written = export(ours, tmp_path / "out")
    expected = get_fp32_state_dict_from_zero_checkpoint(str(theirs))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert written.tensors == len(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor), name
    rounded = load_file(ours / "weights.safetensors")
    assert any(not torch.equal(found[n], t.float()) for n, t in rounded.items())


def test_a_run_of_ours_that_deepspeed_saved_reads_the_same(both: tuple[Path, Path]) -> None:
    """Weights and moments, by our own names."""
    ours, theirs = both
    state, source = TrainingState(ours), open_checkpoint(theirs)
    shapes = {name: tuple(shape) for name, shape in state.values["shapes"].items()}
    assert source.shapes == shapes
    assert source.optimizer_steps == state.values["optimizer_steps"] == 3
    for name in shapes:
        for key in ("master", "exp_avg", "exp_avg_sq"):
            values = source.read(name, key).flatten()
            assert torch.equal(state.read(name, key, 0, values.numel()), values), (name, key)


def test_the_command(both: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a run's folder the newest; the exit status is 2 where it cannot be."""
    from runtime.checkpoint.__main__ import main

    for number, directory in enumerate((both[0], both[0].parent)):
        assert main(["export", str(directory), str(tmp_path / f"{number}")]) == 0
        assert (tmp_path / f"{number}" / "model.safetensors").is_file()
    assert main(["export", str(both[0]), str(tmp_path / "0")]) == 2
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "x")]) == 2


def test_what_cannot_be_exported_says_so(both: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(both[0], tmp_path / "step_00000003"))
    state = copy / "training" / "state.json"
    content = json.loads(state.read_text())
    for shapes, words in (
        (None, "shapes"),
        ({}, "says no shapes"),
        ({"a": "x"}, "has no shape"),
        ({"a": [-1]}, "has no shape"),
        ({"a": [3]}, "0 of the 3 values"),
    ):
        state.write_text(json.dumps({**content, "shapes": shapes}))
        sign(copy)
        with pytest.raises(UserError, match=words):
            export(copy, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    (copy / MANIFEST).unlink()
    with pytest.raises(UserError, match="never finished"):
        export(copy, tmp_path / "out")
