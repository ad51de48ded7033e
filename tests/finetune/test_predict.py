import gzip
import json

import orjson
import pytest

from finetune.__main__ import main
from finetune.tokenizer import TextTokenizer
from runtime.errors import EXIT_BAD_INPUT
from tests.finetune.toys import animal_texts, checkpoint, config_file, finetune, write_jsonl


@pytest.fixture
def trained(tmp_path):
    assert finetune(config_file(tmp_path, task__max_length=12)) == 0
    return tmp_path


def lines(data):
    return [orjson.loads(line) for line in data.splitlines()]


def test_predictions_are_those_of_the_run(trained, capsysbinary):
    expected = lines((trained / "run" / "predictions.jsonl").read_bytes())
    for row in expected:
        del row["label"]
    for directory in (trained / "run", trained / "run" / "best"):
        for batch_size in ("32", "1", "7"):  # padded otherwise each time
            capsysbinary.readouterr()
            command = [
                "predict",
                str(directory),
                str(trained / "test.jsonl"),
                "--batch-size",
                batch_size,
            ]
            assert main(command) == 0
            captured = capsysbinary.readouterr()
            found = lines(captured.out)
            assert [r["predicted"] for r in found] == [r["predicted"] for r in expected]
            for a, b in zip(found, expected, strict=True):
                assert a.keys() == b.keys()
                assert a["probability"] == pytest.approx(b["probability"], abs=3e-6)
            assert b"were cut" in captured.err  # max_length went along with the model


def test_every_format_is_predicted_alike(trained):
    rows = animal_texts(9, 5)
    write_jsonl(trained / "a.jsonl", [{"body": r["text"]} for r in rows])
    (trained / "a.csv").write_text(
        "id,body\n" + "".join(f"{i},{r['text']}\n" for i, r in enumerate(rows))
    )
    (trained / "a.tsv").write_text("body\tid\n" + "".join(f"{r['text']}\t0\n" for r in rows))
    (trained / "b.csv.gz").write_bytes(gzip.compress((trained / "a.csv").read_bytes()))
    found = []
    for name in ("a.jsonl", "a.csv", "a.tsv", "b.csv.gz"):
        output = trained / f"{name}.out"
        command = ["predict", str(trained / "run"), str(trained / name), "--output", str(output)]
        assert main([*command, "--text-key", "body"]) == 0
        found.append(output.read_bytes())
    assert len(lines(found[0])) == 9
    assert len(set(found)) == 1


def test_the_input_is_a_stream(trained, monkeypatch):
    """Never more than one chunk of texts is in memory."""
    held = []
    real = TextTokenizer.encode
    monkeypatch.setattr(
        TextTokenizer, "encode", lambda self, texts: held.append(len(texts)) or real(self, texts)
    )
    write_jsonl(trained / "long.jsonl", animal_texts(100))
    command = ["predict", str(trained / "run"), str(trained / "long.jsonl"), "--batch-size", "2"]
    assert main([*command, "--output", str(trained / "out")]) == 0
    assert held == [32, 32, 32, 4]
    assert [row["index"] for row in lines((trained / "out").read_bytes())] == list(range(100))


def test_a_wrong_line_leaves_no_output(trained, capsys):
    rows = [*animal_texts(3), {"text": " "}]
    path = write_jsonl(trained / "bad.jsonl", rows)
    assert main(["predict", str(trained / "run"), str(path), "--output", str(trained / "out")]) == 2
    assert f"{path}:4: 'text' is empty" in capsys.readouterr().err
    assert not (trained / "out").exists()
    assert not list(trained.glob(".out*"))


def test_bad_arguments_are_one_line(tmp_path, capsys):
    base = checkpoint(tmp_path / "base")
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "w1"}])
    for command, message in (
        (["predict", str(tmp_path / "nowhere"), str(path)], "no such directory"),
        (["predict", str(base), str(tmp_path / "b.jsonl")], "no such file"),
        (["predict", str(base), str(path)], "has no head for task.kind: classification"),
    ):
        assert main(command) == EXIT_BAD_INPUT
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_default_class_names_are_understood(tmp_path, capsysbinary):
    rows = [{"text": f"w{i % 9}", "label": f"LABEL_{i % 2}"} for i in range(40)]
    for name in ("train", "dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    assert finetune(config_file(tmp_path, epochs=1)) == 0
    capsysbinary.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "test.jsonl")]) == 0
    assert {r["predicted"] for r in lines(capsysbinary.readouterr().out)} <= {"LABEL_0", "LABEL_1"}
    assert json.loads((tmp_path / "run" / "best" / "config.json").read_text())["label2id"]


def test_the_input_is_never_overwritten(trained, capsys):
    path = trained / "test.jsonl"
    before = path.read_bytes()
    command = ["predict", str(trained / "run"), str(path), "--output", str(path)]
    assert main(command) == EXIT_BAD_INPUT
    assert "is the input" in capsys.readouterr().err
    assert path.read_bytes() == before
