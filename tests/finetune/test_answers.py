"""Predictions go on where they were killed, and end with the bytes of an undisturbed run."""

import argparse
import csv
import io
import resource
import signal
from pathlib import Path

import orjson
import pytest

from finetune import evaluate
from finetune.__main__ import main
from finetune.answers import Progress, Resumable, write_row_of
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


def test_a_full_disk_keeps_what_is_done(run, tmp_path, capsys):
    output, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    assert predict(run, whole) == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, as where a disk is full
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size * 3 // 4, limits[1]))
        assert predict(run, output) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert f"{output}: cannot be written: File too large" in capsys.readouterr().err
    assert (tmp_path / ".out.csv.part").exists()
    assert predict(run, output) == 0
    assert "going on after" in capsys.readouterr().err
    assert output.read_bytes() == whole.read_bytes()


def test_a_machine_without_the_gpu_keeps_what_is_done(run, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"

    def missing(_):
        raise UserError("torch sees no GPU", status=2)

    real = Resumable.save
    with monkeypatch.context() as patched:
        patched.setattr(Resumable, "save", lambda *a: (real(*a), missing(0)))
        assert predict(run, output) == 2
        patched.setattr(Resumable, "save", real)
        patched.setattr("runtime.dist.resolve_device", missing)
        assert predict(run, output) == 2
    state = orjson.loads((tmp_path / ".out.jsonl.state").read_bytes())
    assert state["examples"] == 32
    assert predict(run, output) == 0


def test_no_answers_of_two_inputs_in_one_file(run, tmp_path):
    """Begun of A, then of B, which is killed before its first save; then A is gone on with."""
    output, model = tmp_path / "out.jsonl", run / "run/best"
    for name in "AB":
        write_jsonl(tmp_path / name, [{"text": name}])

    def options(name):
        kept = {"text_key": None, "intents": False, "batch_size": 2, "device": "cpu"}
        return argparse.Namespace(input=tmp_path / name, **kept)

    for name, saves in (("A", True), ("B", False)):
        opened = Resumable(output, model, options(name)).__enter__()
        for index in range(20):
            opened.write({"index": index, "of": name})
        if saves:
            opened.save(Progress(20, 0))
        opened._stream.close()
    with Resumable(output, model, options("A")) as again:
        assert again.progress == Progress(0, 0)
