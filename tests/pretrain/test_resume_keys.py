"""Keys of a run that its checkpoint's config.json does not hold."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from runtime.records import read_metrics
from tests.processes import run

Write = Callable[..., Path]
CONSTANT = "schedule.kind=constant"  # the other schedules depend on the number of steps


def train(path: Path, *overrides: str) -> tuple[int, str]:
    return run(["-m", "pretrain", str(path), CONSTANT, *overrides], 1)


def losses(run_dir: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(run_dir / "metrics.jsonl") if "loss" in r}


@pytest.mark.parametrize(
    "keys",
    [
        {"model__vocab_multiple": 64},
        {"model__mup_base_width": 16, "model__tie_embeddings": False},
    ],
    ids=["padded vocabulary", "muP"],
)
def test_it_goes_on_as_without_a_break(write_config: Write, tmp_path: Path, keys: dict) -> None:
    found = {}
    for name, stops in (("straight", [8]), ("broken", [4, 8])):
        path = write_config(run__dir=str(tmp_path / name), **keys)
        for stop in stops:
            status, output = train(path, f"steps={stop}")
            assert status == 0, output
        found[name] = losses(tmp_path / name)
    assert list(found["straight"]) == list(range(1, 9))
    assert found["broken"] == found["straight"]


def test_a_padded_vocabulary_trains_alike_and_is_not_stored(
    write_config: Write, tmp_path: Path
) -> None:
    found, rows = {}, {}
    for multiple in (1, 64):
        path = write_config(run__dir=str(tmp_path / str(multiple)), precision="fp32")
        status, output = train(path, "steps=4", f"model.vocab_multiple={multiple}")
        assert status == 0, output
        found[multiple] = losses(tmp_path / str(multiple))
        weights = tmp_path / str(multiple) / "checkpoints/step_00000004/model.safetensors"
        rows[multiple] = load_file(weights)["model.embed_tokens.weight"].shape[0]
    assert rows[1] == rows[64]
    assert rows[1] % 64
    assert found[64] == pytest.approx(found[1], rel=1e-5)


def test_another_padding_of_the_vocabulary_is_refused(write_config: Write, tmp_path: Path) -> None:
    path = write_config()
    assert train(path, "steps=4")[0] == 0
    status, output = train(path, "steps=8", "model.vocab_multiple=64")
    assert status == 2
    assert "model.vocab_multiple: got 64, expected 1" in output
    assert "Traceback" not in output
