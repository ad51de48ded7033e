import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from runtime.checkpoint import newest_verified, verify
from runtime.checkpoint.reader import TrainingState
from runtime.errors import UserError
from tests.processes import run

WORKER = "tests/runtime/checkpoint_worker.py"


def work(root: Path, ranks: int, stage: int, precision: str, first: int, last: int) -> Any:
    arguments = [WORKER, str(root), str(stage), precision, str(first), str(last)]
    status, output = run(arguments, ranks)
    assert status == 0, output
    return json.loads(next(line for line in output.splitlines() if line.startswith('{"losses"')))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Eight steps of two ranks under ZeRO-1 without a break."""
    return work(tmp_path_factory.mktemp("straight"), 2, 1, "fp32", 0, 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint after four of them."""
    root = tmp_path_factory.mktemp("saved")
    work(root, 2, 1, "fp32", 0, 4)
    return root


def test_a_save_is_committed_whole(saved: Path) -> None:
    found = newest_verified(saved)
    assert found is not None
    assert verify(found.path) == []
    assert (saved / "latest").read_text() == "step_00000004\n"
    assert sorted(p.name for p in saved.iterdir()) == ["latest", "step_00000004"]
    names = sorted(p.name for p in (found.path / "training").iterdir())
    assert names == ["optimizer_00000.safetensors", "optimizer_00001.safetensors", "state.json"]


def test_slices_cover_every_parameter_once(saved: Path) -> None:
    path = saved / "step_00000004"
    covered: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for file in (path / "training").glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                parameter, key, start = name.split("|")
                numel = opened.get_slice(name).get_shape()[0]
                covered.setdefault((parameter, key), []).append((int(start), int(start) + numel))
    with safe_open(path / "weights.safetensors", framework="pt") as weights:
        for parameter in weights.keys():  # noqa: SIM118
            for key in ("master", "exp_avg", "exp_avg_sq"):
                stretches = sorted(covered.pop((parameter, key)))
                ends = [0, *(end for _, end in stretches)]
                assert [start for start, _ in stretches] == ends[:-1]
                assert ends[-1] == weights.get_tensor(parameter).numel()
    assert covered == {}


def test_the_state_says_the_shape_of_every_parameter(saved: Path, tmp_path: Path) -> None:
    """Also under ZeRO-3, where no rank holds one whole."""
    work(tmp_path, 2, 3, "fp32", 0, 1)
    for path in (saved / "step_00000004", tmp_path / "step_00000001"):
        with safe_open(path / "weights.safetensors", framework="pt") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        assert TrainingState(path).values["shapes"] == shapes


def copy(saved: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(saved, to / "copy"))


def test_resume_on_the_same_ranks_is_bit_exact(saved: Path, straight: Any, tmp_path: Path) -> None:
    resumed = work(copy(saved, tmp_path), 2, 1, "fp32", 4, 8)
    assert resumed["losses"] == straight["losses"][4:]
    assert resumed["digests"] == straight["digests"]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (1, 3), (2, 2), (2, 3)])
def test_resume_on_another_topology(
    saved: Path, straight: Any, tmp_path: Path, ranks: int, stage: int
) -> None:
    resumed = work(copy(saved, tmp_path), ranks, stage, "fp32", 4, 8)
    assert resumed["losses"] == pytest.approx(straight["losses"][4:], rel=1e-6)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_bf16_resumes_from_the_fp32_master_weights(tmp_path: Path, ranks: int, stage: int) -> None:
    whole = work(tmp_path / "whole", ranks, stage, "bf16", 0, 6)
    work(tmp_path / "parts", ranks, stage, "bf16", 0, 3)
    rest = work(tmp_path / "parts", ranks, stage, "bf16", 3, 6)
    assert rest["losses"] == whole["losses"][3:]
    assert rest["digests"] == whole["digests"]


def test_reading_what_was_not_saved_names_it(saved: Path) -> None:
    state = TrainingState(saved / "step_00000004")
    assert state.values["optimizer_steps"] == 4
    whole = state.read("embedding.weight", "master", 0, 37 * 16)
    part = state.read("embedding.weight", "master", 250, 200)
    assert part.tolist() == whole[250:450].tolist()
    with pytest.raises(UserError, match=r"master of other\.weight has 0 of the 5 values"):
        state.read("other.weight", "master", 0, 5)
