"""Whole runs on two sources: stages, a new mixture at a resume, and the documents of each step."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep import which
from runtime.records import read_metrics
from tests.processes import run


def documents(run_dir: Path, step: int, capsys: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert which.main([str(run_dir), "--step", str(step), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_changes_its_mixture_and_says_what_every_step_was_made_of(
    write_config: Callable[..., Path],
    corpus: Path,
    prepare_again: Callable[..., Path],
    tmp_path: Path,
    capsys: Any,
) -> None:
    other = prepare_again(tmp_path, {"kind": "char"})
    sources = [{"path": str(corpus), "weight": 0.75}, {"path": str(other), "weight": 0.25}]
    common = {"steps": 6, "evaluate__every_steps": 0, "data__valid": str(corpus)}
    path = write_config(data__train=sources, **common)
    status, output = run(["-m", "pretrain", str(path)])
    assert status == 0, output
    assert "data so far: " in output
    sources[0]["weight"], sources[1]["weight"] = 0.125, 0.875
    stages = [{"from_step": 9, "weights": [1, 0]}]
    path = write_config(data__train=sources, data__stages=stages, **{**common, "steps": 12})
    status, output = run(["-m", "pretrain", str(path)])
    assert status == 0, output
    assert "another mixture from data step 6 on: " in output

    run_dir = tmp_path / "run"
    rows, last = Counter(), documents(run_dir, 12, capsys)
    for step in range(1, 13):
        found = documents(run_dir, step, capsys)
        for sample in {entry["sample"]: entry["source"] for entry in found["documents"]}.items():
            rows[(step > 6) + (step > 9), sample[1]] += 1
    # Samples of windows: as many as tokens, but for the two splits' last windows.
    assert abs(rows[0, str(corpus)] - 36) <= 1
    assert abs(rows[1, str(corpus)] - 3) <= 1
    assert rows[2, str(other)] == 0
    (record,) = [r for r in read_metrics(run_dir / "metrics.jsonl") if "tokens_by_source" in r][-1:]
    assert record["step"] == 12
    assert record["tokens_by_source"] == [source["tokens"] for source in last["sources"]]
    assert sum(record["tokens_by_source"]) == 12 * 8 * 32


def test_a_run_that_its_sources_do_not_last_for_does_not_start(
    write_config: Callable[..., Path], corpus: Path
) -> None:
    source = {"path": str(corpus), "max_repetition": 0.5}
    path = write_config(data__train=[source], steps=100_000)
    status, output = run(["-m", "pretrain", str(path)])
    assert status == 2
    assert "data.train: the sources last for" in output
    assert "steps=100,000" in output
    assert "max_repetition" in output


def test_stages_that_cannot_be_are_named(write_config: Callable[..., Path]) -> None:
    stages = [{"from_step": 5, "weights": [1, 2]}, {"from_step": 5, "weights": [0]}]
    status, output = run(["-m", "pretrain", str(write_config(data__stages=stages))])
    assert status == 2
    assert "stage 0 has 2 weights, and data.train has 1 sources" in output
    assert "stage 1 has weights [0.0]; expected 0 or more, not all 0" in output
    assert "stage 1 begins at step 5, expected after 5" in output
