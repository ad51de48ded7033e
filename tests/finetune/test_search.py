"""Whole searches, seeds and folds on tiny models."""

import csv
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import orjson
import pytest
import yaml
from accelerate.state import AcceleratorState

from finetune.__main__ import main
from finetune.config import FinetuneConfig, read_sets
from finetune.runs import carry_out
from finetune.search import command, repeats
from finetune.tasks.base import folds_of
from runtime.config import load
from runtime.signals import StopRequest
from tests.finetune.toys import animal_texts, config_file, finetune, read_report, write_jsonl
from tests.processes import ROOT, environment

SPACE = "optim.lr: [1e-6, 3e-3]\noptim.weight_decay: [0.0, 0.1]\n"


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


def small(tmp_path, **changes):
    write_jsonl(tmp_path / "train.jsonl", animal_texts(48, 1))
    for name, seed in (("dev", 2), ("test", 3)):
        write_jsonl(tmp_path / f"{name}.jsonl", animal_texts(18, seed))
    return config_file(tmp_path, **changes)


def search(config, space, *words):
    return main(["search", str(config), str(space), *words])


@pytest.fixture
def in_process(monkeypatch):
    """Runs take seconds to start as processes: most tests carry them out in this one."""

    def carried_out(words, ranks, log, stop, ends_early=None):
        assert ranks == 1
        AcceleratorState._reset_state(reset_partial_state=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as out, redirect_stdout(out), redirect_stderr(out):
            return main(list(words))

    for module in (command, repeats):
        monkeypatch.setattr(module, "carry_out", carried_out)


def found(out):
    return orjson.loads((out / "search.json").read_bytes())


def test_a_search_on_two_ranks_tries_the_same_values_as_on_one(tmp_path, space, capfd):
    config = small(tmp_path, epochs=1)
    for ranks in (1, 2):
        words = ["--trials", "2", "--ranks", str(ranks), "--out", str(tmp_path / f"out{ranks}")]
        assert search(config, space, *words) == 0, capfd.readouterr()
    one, two = found(tmp_path / "out1"), found(tmp_path / "out2")
    for a, b in zip(one["trials"], two["trials"], strict=True):
        assert a["values"] == b["values"]
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)
    for trial in two["trials"]:
        home = tmp_path / "out2" / "trials" / f"{trial['number']:04d}"
        if trial["reason"]:
            assert not home.exists()  # the values of an earlier trial
            continue
        ran = yaml.safe_load((home / "config.yaml").read_text())
        assert ran["optim"]["lr"] == trial["values"]["optim.lr"]
        assert ran["data"]["test"] is None
        assert "2 × cpu" in home.with_name(f"{home.name}.log").read_text()


def test_the_best_config_runs_and_scores_what_its_trial_did(tmp_path, space, in_process):
    config, out = small(tmp_path, epochs=4), tmp_path / "out"
    assert search(config, space, "--trials", "3", "--out", str(out)) == 0
    best = found(out)["best"]
    assert best["score"] == max(t["score"] for t in found(out)["trials"])
    assert finetune(out / "best.yaml") == 0
    report = read_report(out / "best-run")
    assert report["split"] == "test"
    assert report["best"]["dev_score"] == pytest.approx(best["score"], abs=1e-6)
    rows = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    assert [int(row["trial"]) for row in rows] == [0, 1, 2]
    assert float(rows[best["number"]]["accuracy"]) == pytest.approx(best["score"])
    kept = {p.parent.name for p in (out / "trials").glob("*/best")}
    assert kept == {f"{best['number']:04d}"}  # the weights of the others are gone
    # More trials go on where it ended, and none is run again.
    before = (out / "trials" / "0000" / "metrics.jsonl").stat().st_mtime_ns
    assert search(config, space, "--trials", "4", "--out", str(out)) == 0
    assert len(found(out)["trials"]) == 4
    assert (out / "trials" / "0000" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_trial_that_fails_is_told_and_the_search_goes_on(tmp_path, in_process):
    space = tmp_path / "space.yaml"
    space.write_text("task.max_length: [32, 4096]\n")
    config, out = small(tmp_path, epochs=1), tmp_path / "out"
    assert search(config, space, "--trials", "6", "--out", str(out)) == 0
    states = {t["values"]["task.max_length"]: t for t in found(out)["trials"]}
    assert states[4096]["state"] == "failed"
    assert "more than the model's 64 positions" in states[4096]["reason"]
    assert found(out)["best"]["values"] == {"task.max_length": 32}


def test_a_search_that_is_stopped_goes_on(tmp_path, space):
    config, out = small(tmp_path, epochs=40), tmp_path / "out"
    words = [
        "-m",
        "finetune",
        "search",
        str(config),
        str(space),
        "--trials",
        "1",
        "--out",
        str(out),
    ]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    log = out / "trials" / "0000" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the trial does not get on"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output
    assert b"run the same command again" in output
    assert search(config, space, "--trials", "1", "--out", str(out)) == 0
    assert "resumed from" in (out / "trials" / "0000.log").read_text()
    (trial,) = found(out)["trials"]
    assert trial["state"] == "complete"


def test_a_run_that_is_told_to_end_early_saves_and_leaves(tmp_path):
    config = small(tmp_path, epochs=60)
    log = tmp_path / "run" / "metrics.jsonl"
    status = carry_out([str(config)], 1, tmp_path / "log", StopRequest(),
                       lambda: log.exists() and log.stat().st_size > 0)  # fmt: skip
    assert status == 75
    assert list((tmp_path / "run" / "checkpoints").glob("step_*"))


def test_a_launcher_s_ranks_are_refused(tmp_path, space, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert search(small(tmp_path), space) == 2
    assert "--ranks 2" in capsys.readouterr().err


def test_wrong_ends_of_a_range_are_told_before_anything_runs(tmp_path, capsys):
    space = tmp_path / "space.yaml"
    space.write_text("transfer.layer_decay: {low: 0.5, high: 1.5}\n")
    assert search(small(tmp_path), space, "--out", str(tmp_path / "out")) == 2
    assert "transfer.layer_decay" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- seeds and folds -------------------------------------------------------------------------


def test_seeds_give_mean_and_deviation(tmp_path, in_process):
    config, out = small(tmp_path, epochs=2, run__seed=7), tmp_path / "seeds"
    assert main(["seeds", str(config), "--seeds", "3", "--out", str(out)]) == 0
    summary = orjson.loads((out / "seeds.json").read_bytes())
    reports = [read_report(out / f"seed_{seed}") for seed in (7, 8, 9)]
    for name in ("accuracy", "macro_f1", "loss"):
        values = [report[name] for report in reports]
        assert summary["scores"][name]["values"] == values
        assert summary["scores"][name]["mean"] == pytest.approx(np.mean(values))
        assert summary["scores"][name]["standard_deviation"] == pytest.approx(
            np.std(values, ddof=1)
        )
    assert len(set(summary["scores"]["loss"]["values"])) == 3
    before = (out / "seed_7" / "best" / "config.json").stat().st_mtime_ns
    assert main(["seeds", str(config), "--seeds", "3", "--out", str(out)]) == 0
    assert (out / "seed_7" / "best" / "config.json").stat().st_mtime_ns == before
    assert "already finished" in (out / "seed_7.log").read_text()


def test_kfold_predicts_every_example_by_a_model_that_has_not_seen_it(tmp_path, in_process):
    rows = animal_texts(40, 5)
    rows += rows[:6]  # copies, which must not be learned by the run that is tested on them
    config = small(tmp_path, epochs=1, data__dev=None)
    write_jsonl(tmp_path / "train.jsonl", rows)
    out = tmp_path / "folds"
    assert main(["kfold", str(config), "--folds", "3", "--out", str(out)]) == 0
    summary = orjson.loads((out / "kfold.json").read_bytes())
    assert sum(summary["examples"]) == len(rows)
    told = [orjson.loads(line) for line in (out / "predictions.jsonl").read_bytes().splitlines()]
    assert [row["index"] for row in told] == list(range(len(rows)))
    assert [row["label"] for row in told] == [row["label"] for row in rows]
    for fold in range(3):
        report = read_report(out / f"fold_{fold}")
        assert report["seen_in_train"] == 0
        own = [row for row in told if row["fold"] == fold]
        right = np.mean([row["predicted"] == row["label"] for row in own])
        assert right == pytest.approx(report["accuracy"])
    values = [read_report(out / f"fold_{fold}")["accuracy"] for fold in range(3)]
    assert summary["scores"]["accuracy"]["mean"] == pytest.approx(np.mean(values))


def test_folds_are_even_in_every_class_and_keep_copies_together(tmp_path):
    config = small(tmp_path)
    rows = animal_texts(100, 9)
    write_jsonl(tmp_path / "train.jsonl", [*rows, *rows[:10]])
    whole = load(FinetuneConfig, config)
    examples = read_sets(whole)[0].train
    parts = folds_of(examples, 4, 0)
    assert folds_of(examples[::-1], 4, 0) == parts[::-1]  # whatever the order
    assert folds_of(examples, 4, 1) != parts
    by_text = {}
    for example, part in zip(examples, parts, strict=True):
        assert by_text.setdefault(example.text, part) == part
    for label in ("cat", "dog", "cow"):
        counts = np.bincount(
            [
                p
                for t, p in by_text.items()
                if any(e.text == t and e.stratum == label for e in examples)
            ],
            minlength=4,
        )
        assert counts.max() - counts.min() <= 1
    seen = []
    for fold in range(4):
        words = ["data.folds=4", f"data.fold={fold}", "data.test=null", "data.dev=null"]
        sets, problems = read_sets(load(FinetuneConfig, config, words))
        assert not problems
        assert not {e.text for e in sets.test} & {e.text for e in [*sets.train, *sets.dev]}
        assert len(sets.test) + len(sets.train) + len(sets.dev) == len(examples)
        seen += [e.line for e in sets.test]
    assert sorted(seen) == sorted(e.line for e in examples)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.fold=1"], "is of data.folds"),
        (["data.folds=3", "data.fold=3", "data.test=null"], "3 of 3 folds; write 2 or less"),
        (["data.folds=3"], "a part of train is test"),
        (["data.folds=999", "data.fold=998", "data.test=null"], "more than there are texts"),
    ],
)
def test_wrong_folds_are_told(tmp_path, words, told, capsys):
    assert finetune(small(tmp_path), *words) == 2
    assert told in capsys.readouterr().err
