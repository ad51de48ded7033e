"""Predictions go on where they were killed, and end with the bytes of an undisturbed run."""

import csv
import io
from pathlib import Path

import orjson
import pytest

from finetune import evaluate
from finetune.__main__ import main
from tests.finetune.toys import animal_texts, config_file, finetune, write_jsonl


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    assert finetune(config_file(folder, epochs=1)) == 0
    write_jsonl(folder / "new.jsonl", animal_texts(100, seed=7))
    return folder


def predict(run: Path, output: Path, *more: str, source: str = "new.jsonl") -> int:
    words = ["predict", str(run / "run"), str(run / source), "--output", str(output)]
    return main([*words, "--batch-size", "2", *more])


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_a_killed_run_goes_on(run, tmp_path, monkeypatch, suffix):
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    assert predict(run, whole) == 0
    real, calls = evaluate.infer, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 40:  # in the third chunk of 16 batches
            raise OSError(5, "a disk of the machine is gone")
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "infer", killed)
        with pytest.raises(OSError, match="gone"):
            predict(run, output)
    assert not output.exists()
    part = tmp_path / f".out{suffix}.part"
    with part.open("ab") as stream:
        stream.write(b'{"index": 64, "predic')  # a torn line
    calls.clear()
    monkeypatch.setattr(evaluate, "infer", lambda *a: calls.append(1) or real(*a))
    assert predict(run, output) == 0
    assert len(calls) == 18  # of 50 batches, two chunks of 16 were done
    assert output.read_bytes() == whole.read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_another_input_begins_anew(run, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    real, calls = evaluate.infer, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 20:
            raise OSError(5, "a disk of the machine is gone")
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "infer", killed)
        with pytest.raises(OSError, match="gone"):
            predict(run, output)
    write_jsonl(run / "other.jsonl", animal_texts(40, seed=8))
    assert predict(run, output, source="other.jsonl") == 0
    rows = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    assert [row["index"] for row in rows] == list(range(40))


def test_a_table_says_what_the_lines_say(run, tmp_path):
    assert predict(run, tmp_path / "out.jsonl") == 0
    assert predict(run, tmp_path / "out.csv") == 0
    rows = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    table = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert len(table) == 100
    for row, cells in zip(rows, table, strict=True):
        assert cells["predicted"] == row["predicted"]
        assert float(cells["probability"]) == row["probability"]
        assert orjson.loads(cells["probabilities"]) == row["probabilities"]
