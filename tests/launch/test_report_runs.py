"""Pages of whole, broken, empty and several runs: what stands on them."""

import html
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from launch.__main__ import main
from launch.report.page import names_of
from tests.launch.test_report import make_run


def lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))


def page_of(*runs: Path, options: tuple[str, ...] = ()) -> str:
    output = runs[0].parent / "page.html"
    assert main(["report", *map(str, runs), "--output", str(output), *options]) == 0
    return output.read_text(encoding="utf-8")


def words(page: str) -> str:
    """What a reader sees, without the pictures."""
    text = re.sub(r"<(svg|style).*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)))


def full_run(path: Path) -> Path:
    """A run with everything that a page can show."""
    run = make_run(path)
    config = {
        "run": {"name": path.name, "dir": str(path)},
        "steps": 100,
        "optim": {"lr": 0.5, "betas": [0.9, 0.95]},
        "deepspeed": {"extra": {"comet": {"api_key": "hunter2-hunter2"}}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    lines(
        run / "clock.jsonl",
        [
            {"start": 1000.0, "time": 1060.0, "step": 3, "ranks": 4, "device": "NVIDIA H100"},
            {"start": 1000.0, "time": 4600.0, "step": 50, "ranks": 4, "device": "NVIDIA H100"},
            {"start": 9000.0, "time": 10800.0, "step": 100, "ranks": 8, "device": "NVIDIA H100"},
        ],
    )
    (run / "data_order.json").write_text('{"sources": ["data/en", "data/中文"]}')
    with (run / "metrics.jsonl").open("ab") as file:
        record = {"step": 100, "tokens_by_source": [750, 250], "epochs_by_source": [0.5, 2.25]}
        file.write(orjson.dumps(record) + b"\n")
    events = [
        {"step": 40, "kind": "spike", "message": "loss <9>"},
        {"step": 60, "kind": "rollback"},
    ]
    lines(run / "events.jsonl", events)
    lines(
        run / "samples.jsonl",
        [
            {"step": s, "prompt": "I am", "text": f"I am <{s}>", "guesses": []}
            for s in range(1, 101)
        ],
    )
    score = {"kind": "task", "name": "古诗", "metrics": {"acc": 0.25}, "checkpoint": "c"}
    lines(run / "scores.jsonl", [{"step": 50, **score}, {"step": 100, **score}])
    return run


def test_costs_are_of_all_starts(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    seen = words(page_of(run, options=("--price-per-gpu-hour", "2.5", "--watts", "700")))
    assert "starts 2" in seen
    assert "wall time 1 h 30 min" in seen
    assert "GPU-hours 8 " in seen  # 1 h × 4 and half an hour × 8
    assert "energy at 700 W each 5.6 kWh" in seen
    assert "price at 2.5 an hour 20.00" in seen
    assert "price" not in words(page_of(run))


def test_everything_of_a_run_is_on_its_page(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path / "run"))
    seen = words(page)
    assert "data/中文 250 25.00% 2.25" in seen
    assert "古诗: acc" in seen
    assert "1 × spike, 1 × rollback" in seen
    assert page.count('class="mark spike"') == 6  # on three curves, over steps and over tokens
    assert "step 40: spike: loss &lt;9&gt;" in page
    assert "<mark> &lt;100&gt;</mark>" in page  # the newest
    assert "<mark> &lt;1&gt;</mark>" in page
    assert seen.count("I am <") == 8  # and six between
    assert "optim.lr 0.5 0.0003" in seen
    assert "configuration: all 6 settings" in seen
    assert "hunter2" not in page
    assert "optim.betas" not in seen.split("all 6 settings")[0]  # as the default is
    assert "Incomplete versions.json is missing" in seen


def test_tables_and_pictures_have_names(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path / "run"))
    assert page.count("<table>") == page.count("<caption>") > 5
    assert page.count("<svg") == len(
        re.findall(r"<svg[^>]*role=\"img\"><title>[^<]+</title>", page)
    )
    assert not re.search(r"<t[hd](?!ead| scope| class=\"text\"|>)", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


BREAKAGES: dict[str, tuple[dict[str, bytes | None], str]] = {
    "torn": ({"metrics.jsonl": b'{"step": 101, "lo'}, "the last line is cut off"),
    "strange": (
        {"metrics.jsonl": b'[]\n7\n{"step": "x"}\nnot JSON\n{"step": 101, "loss": "a"}\n'},
        "metrics.jsonl: 4 lines are no records",
    ),
    "nan": (
        {"metrics.jsonl": b'{"step": 101, "loss": null}\n'},
        "loss was not finite in 1 records (steps 101)",
    ),
    "no config": ({"config.yaml": None}, "config.yaml is missing"),
    "bad config": ({"config.yaml": b"\nx: [1"}, "config.yaml cannot be read"),
    "list": ({"versions.json": b"[1]"}, "versions.json holds no object"),
    "garbage": ({"data_order.json": b"\xff\xfe"}, "data_order.json cannot be read"),
    "report": ({"report.json": b'{"classes": 3}'}, "report.json is not as this version writes it"),
    "binary": ({"events.jsonl": b"\x00\xff\n" * 3}, "events.jsonl: 3 lines are no records"),
    "no metrics": ({"metrics.jsonl": None}, "metrics.jsonl is missing"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_runs_get_a_page_that_says_so(tmp_path: Path, name: str) -> None:
    run = full_run(tmp_path / "run")
    files, told = BREAKAGES[name]
    for file, content in files.items():
        if content is None:
            (run / file).unlink()
        elif file.endswith("jsonl"):
            with (run / file).open("ab") as stream:
                stream.write(content)
        else:
            (run / file).write_bytes(content)
    assert told in words(page_of(run))


def test_scores_are_curves_and_a_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    name = "/data/<b>/" + "long/" * 20 + "texts.txt"
    score = {"kind": "perplexity", "name": name, "counts": {"tokens": 460302}}
    found = [(50, 9.0), (100, 8.0), (100, 7.0)]  # scored twice: the later line counts
    lines(
        run / "scores.jsonl",
        [
            {**score, "step": s, "metrics": {"perplexity": p, "bits_per_byte": 1, "nats": 2.0}}
            for s, p in found
        ]
        + [{"step": 100, "kind": "perplexity", "name": "once", "metrics": {"nats": 3.5}}],
    )
    page = page_of(run)
    for metric, is_drawn in (("perplexity", True), ("bits_per_byte", True), ("nats", False)):
        title = f"<b>{html.escape(name)}: {metric}</b>"
        assert (title in page) == is_drawn
    assert "perplexity 7, bits_per_byte 1, nats 2 tokens 460,302" in words(page)
    assert "perplexity 8" not in words(page)
    assert "once perplexity nats 3.5" in words(page)
    assert f'<span title="{html.escape(name)}">…' in page


HOSTILE = ("1e308", "-1e308", "5e-324", str(2**63), "-1", "true", "null", '"<b>"', "[]", "{}")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("metrics.jsonl", '{"step": @, "loss": 1, "tokens_seen": 3}'),
        ("metrics.jsonl", '{"step": 1, "loss": @, "grad_norm": @, "tokens_seen": @, "lr": 1}'),
        ("metrics.jsonl", '{"step": 1, "tokens_by_source": [@, 1], "memory_bytes": @}'),
        ("scores.jsonl", '{"step": @, "name": "x", "metrics": {"acc": @}, "counts": @}'),
        ("scores.jsonl", '{"step": 1, "name": "x", "kind": @, "metrics": {"acc": @}}'),
        ("samples.jsonl", '{"step": 1, "prompt": @, "text": @, "guesses": [{"probability": @}]}'),
        ("events.jsonl", '{"step": @, "kind": @, "message": @}'),
        ("clock.jsonl", '{"step": 1, "start": 1, "time": @, "ranks": @, "device": @}'),
        ("report.json", '{"labels": ["a"], "confusion_matrix": [[@]], "split": @, "accuracy": @}'),
    ],
)
def test_no_value_of_a_file_breaks_the_page(
    tmp_path: Path, file: str, line: str, value: str
) -> None:
    run = make_run(tmp_path / "run", steps=3)
    with (run / file).open("a") as stream:
        stream.write(f"{line.replace('@', value)}\n" * 2)
    assert '<td class="text"><b>' not in page_of(run)
    (run / "metrics.jsonl").write_text(f"{line.replace('@', value)}\n" * 2)
    page_of(run)  # where nothing else is on the axes


def test_an_empty_run_gets_a_page(tmp_path: Path) -> None:
    run = tmp_path / "new"
    (run / "checkpoints").mkdir(parents=True)
    seen = words(page_of(run))
    assert "metrics.jsonl is missing: nothing was recorded yet" in seen
    assert "steps 0" in seen


def test_several_runs_are_overlaid(tmp_path: Path) -> None:
    runs = [full_run(tmp_path / name / "pretrain") for name in ("one", "two")]
    settings = yaml.safe_load((runs[1] / "config.yaml").read_text())
    settings["optim"]["lr"] = 0.25
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(settings))
    (runs[1] / "scores.jsonl").unlink()
    page = page_of(*runs)
    seen = words(page)
    assert "2 pretraining runs compared" in seen
    assert re.search(r"1 settings differ key one/pretrain two/pretrain optim.lr 0.5 0.25", seen)
    compared = page.split("What differs")[0]
    for title in ("training loss", "validation loss", "learning rate", "throughput"):
        figure = re.search(rf"<figure><figcaption><b>{title}</b>.*?</figure>", compared, re.DOTALL)
        assert figure is not None
        assert "one/pretrain" in figure[0]
        assert "two/pretrain" in figure[0]
        assert {"c0", "c1"} <= set(re.findall(r'class="(?:line|band|thin) (c\d)', figure[0]))
    scores = re.search(r"<figure><figcaption><b>古诗: acc</b>.*?</figure>", compared, re.DOTALL)
    assert scores is not None
    assert "two/pretrain" not in scores[0]
    assert "one/pretrain, by itself" in seen
    assert seen.index("one/pretrain, by itself") > seen.index("What differs")


def test_runs_of_different_kinds_are_not_overlaid(tmp_path: Path) -> None:
    full_run(tmp_path / "demo" / "pretrain")
    tuned = make_run(tmp_path / "demo" / "finetune")
    (tuned / "config.yaml").write_text("task: {max_length: 128}\n")
    assert "compared" not in words(page_of(tmp_path / "demo"))


def test_names_tell_runs_apart() -> None:
    assert names_of([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert names_of([Path("/a/x"), Path("/b/y")]) == ["x", "y"]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much"])
def test_prices_that_are_none_are_refused(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path), "--price-per-gpu-hour", value])
    assert "price-per-gpu-hour" in capsys.readouterr().err
