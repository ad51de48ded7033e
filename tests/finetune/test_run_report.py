"""The pages of a finished run: their numbers are the files', and nothing in them can act."""

import re

import numpy as np
import orjson
import pytest

from finetune.__main__ import main
from finetune.report.calibration import BINS, Calibration
from finetune.report.charts import short
from finetune.report.run_files import read_run
from finetune.report.run_page import page
from runtime.errors import EXIT_BAD_INPUT
from tests.finetune.toys import animal_texts, config_file, finetune, read_report, write_jsonl
from tests.launch.chromium import measure, needs_chromium


@pytest.fixture
def trained(tmp_path):
    assert finetune(config_file(tmp_path)) == 0
    return tmp_path / "run"


def rows_of(run):
    return [orjson.loads(line) for line in (run / "predictions.jsonl").read_bytes().splitlines()]


def write_run(directory, report, predictions, metrics=()):
    """The files of a run of any task."""
    directory.mkdir()
    whole = {"split": "test", "examples": len(predictions), "truncated": 0, **report}
    (directory / "report.json").write_bytes(orjson.dumps(whole))
    write_jsonl(directory / "predictions.jsonl", predictions)
    write_jsonl(directory / "metrics.jsonl", metrics)
    return directory


def pages(run) -> tuple[str, str]:
    assert main(["report", str(run)]) == 0
    return (run / "report.html").read_text(), (run / "report.md").read_text()


def test_calibration_is_what_numpy_counts():
    draw = np.random.default_rng(0)
    sure = np.concatenate([draw.uniform(0, 1, 500), [0.0, 1.0, 1 / BINS, 0.4, 0.6]])
    right = draw.uniform(0, 1, len(sure)) < sure**2
    found = Calibration()
    for probability, is_right in zip(sure, right, strict=True):
        found.add(float(probability), is_right=bool(is_right))
    edges = np.linspace(0, 1, BINS + 1)
    places = np.clip(np.digitize(sure, edges, right=True) - 1, 0, BINS - 1)
    expected = 0.0
    for n, one in enumerate(found.bins()):
        inside = places == n
        assert one.count == inside.sum()
        assert one.accuracy == pytest.approx(right[inside].mean())
        assert one.confidence == pytest.approx(sure[inside].mean())
        expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert found.error() == pytest.approx(expected)
    assert found.error() > 0.1


def test_a_run_ends_with_its_pages(trained):
    report, rows = read_report(trained), rows_of(trained)
    sure = np.array([row["probability"] for row in rows])
    right = np.array([row["predicted"] == row["label"] for row in rows])
    assert report["calibration"]["accuracy"] == pytest.approx(report["accuracy"])
    assert report["calibration"]["confidence"] == pytest.approx(sure.mean())
    matrix = np.array(report["confusion_matrix"])
    np.fill_diagonal(matrix, 0)
    most = report["most_confused"][0]
    assert most["count"] == matrix.max()
    assert matrix[tuple(report["labels"].index(most[k]) for k in ("label", "predicted"))] == (
        matrix.max()
    )
    told = (trained / "report.md").read_text()
    assert f"| accuracy | {report['accuracy']:.4f} |" in told
    assert f"{(~right).sum()} of 30 are wrong" in told
    worst = min((i for i in range(30) if not right[i]), key=lambda i: -sure[i])
    text = orjson.loads((trained.parent / "test.jsonl").read_bytes().splitlines()[worst])["text"]
    first = told.split("Worst examples")[1].split("\n| ")[2]
    assert first.startswith(f"{worst} | {text} | {rows[worst]['label']} |")


def test_the_command_makes_the_same_pages_again(trained):
    before = [(trained / f"report.{kind}").read_bytes() for kind in ("html", "md", "json")]
    assert main(["report", str(trained)]) == 0
    assert [(trained / f"report.{k}").read_bytes() for k in ("html", "md", "json")] == before


def test_changed_data_is_not_shown_as_the_runs(trained):
    write_jsonl(trained.parent / "test.jsonl", animal_texts(7))
    _, told = pages(trained)
    assert "texts are not shown: the data files are not those of the run any more" in told
    (trained.parent / "test.jsonl").unlink()
    _, told = pages(trained)
    assert "texts are not shown, as the data cannot be read" in told


def test_leaks_and_cuts_are_told(tmp_path):
    path = config_file(tmp_path, task__max_length=8)
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    with (tmp_path / "test.jsonl").open("a") as stream:
        stream.writelines(lines[:12])
    assert finetune(path) == 0
    report = read_report(tmp_path / "run")
    told = (tmp_path / "run" / "report.md").read_text()
    assert "12 of 42 test examples are in the training set too" in told
    assert f"{report['truncated']} of 42 test examples were cut" in told
    seen, unseen = report["seen"]["accuracy"], report["unseen"]["accuracy"]
    assert f"| accuracy | {report['accuracy']:.4f} | {seen:.4f} | {unseen:.4f} |" in told


def test_nothing_in_the_data_acts(tmp_path):
    evil = "<script>alert(1)</script>|`x`"
    rows = [{"index": 0, "label": evil, "predicted": "b", "probability": 0.9}]
    report = {
        "task": evil,
        "labels": [evil, "b"],
        "confusion_matrix": [[0, 1], [0, 0]],
        "classes": {evil: {"recall": 0.0, "support": 1}, "b": {"recall": 0.0, "support": 0}},
        "notes": {evil: evil},
    }
    page_text, told = pages(write_run(tmp_path / "run", report, rows))
    assert "<script" not in page_text
    assert "http" not in page_text.replace("http-equiv", "")
    assert "default-src 'none'" in page_text.replace("&#x27;", "'")
    assert "\\<script\\>alert(1)\\</script\\>\\|\\`x\\`" in told


def test_entities_answers_and_numbers_are_judged(tmp_path):
    entity = {"start": 0, "end": 3, "label": "PER"}
    tagged = [
        {"label": [entity], "predicted": [{**entity, "probability": 0.8}]},
        {"label": [entity], "predicted": []},
    ]
    run = read_run(write_run(tmp_path / "token", {}, tagged))
    assert run.wrong == 1
    assert [one.index for one in run.mistakes] == [1]
    assert run.calibration.count == 0
    answers = [
        {"label": "a", "answers": ["a", "the a"], "predicted": "the a", "probability": 0.7},
        {"label": "a", "answers": ["a"], "predicted": "b", "probability": 0.6},
    ]
    run = read_run(write_run(tmp_path / "span", {}, answers))
    assert run.wrong == 1
    assert run.calibration.count == 2
    numbers = [{"label": 1.0, "predicted": p} for p in (1.1, 3.0, 0.5)]
    run = read_run(write_run(tmp_path / "regression", {}, numbers))
    assert run.wrong is None
    assert [one.index for one in run.mistakes] == [1, 2, 0]
    losses = [{"predicted": loss, "tokens": 3} for loss in (1.5, None, 2.5)]
    run = read_run(write_run(tmp_path / "language", {}, losses))
    assert [one.index for one in run.mistakes] == [2, 0]


def test_what_a_task_reports_is_a_table(tmp_path):
    report = {
        "exact_match": 0.5,
        "by_length": {"short": {"f1": 0.75, "n": 3}, "long": {"f1": 0.25, "n": 1}},
        "losses": {"a": 0.125},
        "answers": [{"id": "q1", "f1": 0.5}],
    }
    _, told = pages(write_run(tmp_path / "run", report, []))
    for line in ("| exact\\_match | 0.5000 |", "## By length", "| long | 0.2500 | 1 |"):
        assert line in told
    assert "| a | 0.1250 |" in told
    assert "| q1 | 0.5000 |" in told


@pytest.mark.parametrize("classes", [2, 24, 25, 200, 201])
def test_a_matrix_of_any_size(tmp_path, classes):
    names = [f"class {i}" for i in range(classes)]
    matrix = (np.eye(classes, dtype=int) * 3 + np.eye(classes, k=1, dtype=int)).tolist()
    report = {
        "labels": names,
        "confusion_matrix": matrix,
        "classes": {name: {"f1-score": i / classes, "support": 4} for i, name in enumerate(names)},
    }
    run = write_run(tmp_path / "run", report, [])
    text, told = pages(run)
    cells = len(re.findall(r'<rect class="s\d"', text))
    assert cells == (classes**2 if classes <= 24 else 2 * classes - 1 if classes <= 200 else 0)
    assert "| class 0 | class 1 | 1 | 25.0% |" in told
    assert ("All" in told) is (classes > 30)
    assert page(read_run(run))


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0004, "4e-4"), (2.5e-5, "2.5e-5"), (0.25, "0.25"), (12000, "12k")]
)
def test_short_numbers(value, expected):
    assert short(value) == expected


def test_a_directory_without_a_report_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == EXIT_BAD_INPUT
    assert f"{tmp_path}: no report.json" in capsys.readouterr().err
    (tmp_path / "report.json").write_text("[")
    assert main(["report", str(tmp_path)]) == EXIT_BAD_INPUT
    assert "cannot be read" in capsys.readouterr().err


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window_and_asks_for_nothing(tmp_path, width):
    names = [f"a_rather_long_name_of_class_{i}" for i in range(20)]
    draw = np.random.default_rng(0)
    report = {
        "labels": names,
        "confusion_matrix": draw.integers(0, 9, (20, 20)).tolist(),
        "classes": {n: {"precision": 0.5, "recall": 0.5, "support": 4} for n in names},
    }
    rows = [
        {"label": "a", "predicted": "b", "probability": float(p)} for p in draw.uniform(0, 1, 99)
    ]
    metrics = [{"step": s, "loss": 2 / s, "lr": 1e-4 / s, "dev_f1": s / 50} for s in range(1, 40)]
    run = write_run(tmp_path / "run", report, rows, metrics)
    pages(run)
    measured = measure(run / "report.html", width, tmp_path / "profile")
    assert measured["scrollWidth"] == measured["clientWidth"] == width
    assert measured["wide"] == []
    assert measured["outside"] == []
    assert measured["requests"] == set()
    assert measured["figures"] == 5
