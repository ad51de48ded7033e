"""Predictions go on where they were killed, and end with the bytes of an undisturbed run."""

import csv
import io
from pathlib import Path

import orjson
import pytest

from finetune import evaluate
from finetune.__main__ import main
from finetune.answers import Resumable, write_row_of
from finetune.readers import read_records
from runtime.errors import UserError
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
    assert predict(run, tmp_path / "whole.jsonl", source="other.jsonl") == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


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


def test_a_table_with_tabs_is_read_back_as_it_was(run, tmp_path):
    assert predict(run, tmp_path / "out.jsonl") == 0
    assert predict(run, tmp_path / "out.tsv") == 0
    rows = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    table = [r.values for r in read_records(tmp_path / "out.tsv", ["predicted", "probabilities"])]
    assert [orjson.loads(cells["probabilities"]) for cells in table] == [
        row["probabilities"] for row in rows
    ]


def test_a_table_has_the_columns_of_its_first_row():
    stream = io.BytesIO()
    write = write_row_of("tsv", stream)
    write({"index": 0, "text": 'a "b"\tc\r\nd'})
    write({"text": "e", "index": 1})
    assert stream.getvalue() == b'index\ttext\n0\ta "b" c  d\n1\te\n'
    with pytest.raises(UserError, match="'more', for which the table has no column"):
        write({"index": 2, "text": "f", "more": 1})


def test_a_full_disk_keeps_what_is_done(run, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    real, saves = Resumable.save, []

    def full(self, progress):
        saves.append(progress)
        if len(saves) == 3:
            raise UserError(f"{output}: cannot be written: No space left on device")
        real(self, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Resumable, "save", full)
        assert predict(run, output) == 1
    assert (tmp_path / ".out.csv.part").exists()
    assert predict(run, output) == 0
    assert predict(run, tmp_path / "whole.csv") == 0
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
