import re
from pathlib import Path

import orjson
import pytest

from launch.__main__ import main
from launch.report.charts import Line, chart, confusion, fitted, running_mean, text_width
from launch.report.series import Curve


def make_run(path: Path, steps: int = 100) -> Path:
    path.mkdir(parents=True)
    records = [
        {
            "step": s,
            "tokens_seen": s * 256,
            "loss": 5 / s,
            "lr": 1e-3,
            "grad_norm": 1.0 + 1 / s,
            "tokens_per_second": 1000.0 + s,
            "mfu": None,
            "memory_bytes": 1 << 30,
        }
        for s in range(1, steps + 1)
    ]
    records.append({"step": steps, "tokens_seen": steps * 256, "valid_loss": 2.0})
    (path / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in records))
    (path / "config.yaml").write_text("run: {name: <script>}\n")
    return path


def test_the_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    make_run(tmp_path / "demo" / "pretrain")
    (tmp_path / "demo" / "sample.txt").write_text("def f(x):\n    return x < 1 & 2\n")
    assert main(["report", str(tmp_path / "demo")]) == 0
    page = (tmp_path / "demo" / "report.html").read_text()
    assert not re.search(r'(src|href)="?https?:', page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "return x &lt; 1 &amp; 2" in page
    for text in ("best validation loss", "2 nats", "7.389", "25,600", "n/a (unknown device)"):
        assert text in page
    for title in ("loss", "learning rate", "gradient norm", "throughput"):
        assert f"<b>{title}</b>" in page
    assert "<b>model-FLOPs utilisation</b>" not in page  # no chart of nothing


def test_a_masked_run_shows_accuracy_and_no_perplexity(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mlm")
    more = {"valid_accuracy": 0.123, "valid_unigram_accuracy": 0.051}
    more |= {"valid_pair_accuracy": 0.876, "valid_pair_majority_accuracy": 0.55}
    record = {"step": 100, "tokens_seen": 25600, "valid_loss": 2.0, "update_ratio": 1e-3, **more}
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(orjson.dumps(record) + b"\n")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "perplexity" not in page
    for text in ("12.3%", "87.6%", "validation accuracy", "guessing the most frequent token"):
        assert text in page
    assert "guessing the more frequent label" in page
    assert "update ÷ weight norm" in page


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    make_run(tmp_path / "demo" / "pretrain")
    pages = []
    for name in ("a.html", "b.html"):
        assert main(["report", str(tmp_path / "demo"), "--output", str(tmp_path / name)]) == 0
        pages.append((tmp_path / name).read_text())
    assert pages[0] == pages[1]


def test_no_run_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "no such run directory" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err


def test_a_page_that_can_not_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "demo")
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "report.html"
    assert main(["report", str(tmp_path / "demo"), "--output", str(output)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def curve(steps: list[int], values: list[float]) -> Curve:
    found = Curve()
    for step, value in zip(steps, values, strict=True):
        found.add(step, step * 10.0, value)
    return found


def test_charts_hold_their_words() -> None:
    lines = [Line("train", curve([1, 2], [3.0, 2.0])), Line("<验证>", curve([2], [2.5]))]
    drawn = chart("loss", lines, unit="nats")
    for word in ("<b>loss</b>", ">nats<", ">train<", ">&lt;验证&gt;<", ">step<", ">tokens<"):
        assert word in drawn
    assert "train: 2 values, first 3, last 2, least 2 at step 2, greatest 3 at step 1 nats" in drawn
    matrix = confusion(["猫", "dog"], [[5, 1], [0, 7]])
    for word in ("猫", "dog", "predicted", "true", "5", "7"):
        assert f">{word}<" in matrix


def test_long_names_are_cut_by_the_width_that_they_take() -> None:
    assert fitted("short", 10, 100) == "short"
    assert text_width("汉字", 10) == 20
    for text in ("汉字" * 30, "letters" * 30):
        cut = fitted(text, 10, 100)
        assert cut.endswith("…")
        assert 80 < text_width(cut, 10) <= 100


def test_running_mean_starts_unbiased_and_follows() -> None:
    assert running_mean([3.0] * 50) == pytest.approx([3.0] * 50)
    assert running_mean([0.0] * 500 + [1.0] * 500)[-1] == pytest.approx(1.0, abs=1e-3)


def test_check_and_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("steps: 1\nmodell: {}\n")
    assert main(["check", str(path)]) == 2
    assert "did you mean model" in capsys.readouterr().err
    for stage in ("pretrain", "finetune", "data_prep"):
        assert main(["schema", stage]) == 0
        schema = orjson.loads(capsys.readouterr().out)
        assert schema["additionalProperties"] is False


def test_events_are_told_and_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "eventful")
    assert main(["report", str(run)]) == 0
    assert "Events" not in (run / "report.html").read_text()
    events = [
        {"step": s, "kind": "slow_rank", "message": f"rank <{s}> is slow"} for s in range(150)
    ]
    (run / "events.jsonl").write_bytes(b"".join(orjson.dumps(e) + b"\n" for e in events))
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Events, the last 100 of 150" in page
    assert "rank &lt;149&gt; is slow" in page
    assert '<td class="text">rank &lt;149&gt; is slow' in page
    assert '<td class="text">rank &lt;49&gt; is slow' not in page  # on the curves alone
