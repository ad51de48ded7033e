"""Pretrained, from scratch and TF-IDF over seeds: the numbers of the report are the runs'."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import orjson
import pytest
from accelerate.state import AcceleratorState

from finetune.__main__ import main
from finetune.report import transfer_runs
from finetune.report.transfer_summary import summarise
from runtime.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED
from tests.finetune.toys import SIGNS, config_file, read_report, records
from tests.processes import environment


@pytest.fixture
def started(monkeypatch):
    """Runs in this process, which is faster; their commands."""
    commands = []

    def train(words, ranks, log, stop):
        commands.append(words)
        AcceleratorState._reset_state(reset_partial_state=True)
        log.parent.mkdir(exist_ok=True)
        log.write_text("")
        return main(list(words))

    monkeypatch.setattr(transfer_runs, "carry_out", train)
    return commands


def transfer_report(path, *options: str) -> int:
    return main(["transfer-report", str(path), *options])


def read(tmp_path):
    return orjson.loads((tmp_path / "run-transfer" / "transfer.json").read_bytes())


def test_the_report_says_what_the_runs_say(tmp_path, started):
    path = config_file(tmp_path, epochs=1, evaluate={"every_steps": 2})
    options = ("--seeds", "2", "--examples-per-class", "12", "--scratch", "optim.lr=2e-3")
    assert transfer_report(path, *options, "--also", "head", "transfer.strategy=head") == 0
    report = read(tmp_path)
    ways = {way["name"]: way for way in report["ways"]}
    assert list(ways) == ["pretrained", "scratch", "head", "tfidf", "majority"]
    assert report["examples"] == {"train": 36, "dev": 30, "test": 30}
    for name in ("pretrained", "scratch", "head"):
        runs = [tmp_path / "run-transfer" / f"{name}-seed-{seed}" for seed in (0, 1)]
        finals = [read_report(run)["accuracy"] for run in runs]
        assert ways[name]["scores"]["accuracy"]["mean"] == pytest.approx(np.mean(finals))
        assert ways[name]["scores"]["accuracy"]["std"] == pytest.approx(np.std(finals, ddof=1))
        firsts = [records(run, "dev_accuracy")[0] for run in runs]
        assert ways[name]["initial_dev"]["mean"] == pytest.approx(np.mean(firsts))
        assert ways[name]["initial_step"] == [2]
        bests = [max(records(run, "dev_accuracy")) for run in runs]
        assert ways[name]["best_dev"]["mean"] == pytest.approx(np.mean(bests))
        assert not (runs[0] / "best").exists()
        assert not (runs[0] / "checkpoints").exists()
    # Every text holds one word that only its class has: counting words finds it.
    assert ways["tfidf"]["scores"]["accuracy"]["mean"] > 0.95
    assert ways["majority"]["scores"]["accuracy"]["mean"] < 0.6
    pairs = {row["minus"]: row for row in report["differences"]}
    by_seed = [[r["scores"]["accuracy"] for r in ways[n]["runs"]] for n in ("pretrained", "tfidf")]
    gaps = np.subtract(*by_seed)
    assert pairs["tfidf"]["mean"] == pytest.approx(gaps.mean())
    assert pairs["tfidf"]["standard_error"] == pytest.approx(gaps.std(ddof=1) / 2**0.5)
    assert {row["class"] for row in report["classes"]} == set(SIGNS)
    told = (tmp_path / "run-transfer" / "transfer.md").read_text()
    assert f"{ways['tfidf']['scores']['accuracy']['mean']:.4f}" in told
    assert "2 seeds are too few" in told


def test_ways_of_a_seed_share_their_examples_and_differ_in_weights(tmp_path, started):
    path = config_file(tmp_path, epochs=1, log__every_steps=1)
    assert transfer_report(path, "--seeds", "2", "--examples", "30", "--keep-models") == 0
    root = tmp_path / "run-transfer"
    first = {}
    for name in ("pretrained-seed-0", "scratch-seed-0", "pretrained-seed-1"):
        state = next((root / name / "checkpoints").glob("*/training/state.json"))
        first[name] = orjson.loads(state.read_bytes())["data"]["train"]
    assert first["pretrained-seed-0"] == first["scratch-seed-0"] != first["pretrained-seed-1"]
    losses = [records(root / n, "loss")[0] for n in ("pretrained-seed-0", "scratch-seed-0")]
    assert losses[0] != losses[1]


def test_a_finished_run_is_not_run_again(tmp_path, started):
    path = config_file(tmp_path, epochs=1)
    assert transfer_report(path, "--seeds", "1") == 0
    assert len(started) == 2
    before = read(tmp_path)
    assert transfer_report(path, "--seeds", "1") == 0
    assert len(started) == 2
    after = read(tmp_path)
    for report in (before, after):  # TF-IDF is computed again
        for way in report["ways"][2:]:
            del way["seconds"], way["runs"][0]["seconds"]
    assert before == after
    assert transfer_report(path, "--seeds", "2", "--also", "head", "transfer.strategy=head") == 0
    assert len(started) == 2 + 2 + 2
    assert read(tmp_path)["seeds"] == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["optim.lr=5e-3"], "another optim.lr (0.001, now 0.005)"),
        (["--scratch", "optim.lr=5e-3"], "another way scratch"),
        (["--examples", "20"], "another data.examples (None, now 20)"),
    ],
)
def test_runs_of_other_settings_are_not_mixed(tmp_path, started, capsys, options, message):
    path = config_file(tmp_path, epochs=1)
    assert transfer_report(path, "--seeds", "1") == 0
    assert transfer_report(path, *options, "--seeds", "1") == EXIT_BAD_INPUT
    assert message in capsys.readouterr().err
    assert len(started) == 2


def test_changed_data_is_not_mixed(tmp_path, started, capsys):
    path = config_file(tmp_path, epochs=1)
    assert transfer_report(path, "--seeds", "1") == 0
    text = (tmp_path / "test.jsonl").read_text()
    (tmp_path / "test.jsonl").write_text(text.replace("w1 ", "w2 "))
    assert transfer_report(path, "--seeds", "1") == EXIT_BAD_INPUT
    assert f"another file {tmp_path / 'test.jsonl'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--also", "scratch", "epochs=2"], "--also scratch: expected a name of its own"),
        (["--also", "a/b", "epochs=2"], "--also a/b: expected a name of its own"),
        (["--scratch", "high"], "expected key=value, got 'high'"),
        (["--also", "more", "optim.l=2"], "optim.l"),
        (["task.max_length=4000"], "task.max_length"),
    ],
)
def test_bad_arguments_are_told_before_anything_runs(tmp_path, started, capsys, options, message):
    assert transfer_report(config_file(tmp_path), *options) == EXIT_BAD_INPUT
    assert message in capsys.readouterr().err
    assert not started
    assert not (tmp_path / "run-transfer").exists()


def test_leaked_examples_are_counted_apart(tmp_path, started):
    path = config_file(tmp_path, epochs=1)
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    with (tmp_path / "test.jsonl").open("a") as stream:
        stream.writelines(lines[:10])
    assert transfer_report(path, "--seeds", "1") == 0
    report = read(tmp_path)
    for way in report["ways"]:
        run = way["runs"][0]
        assert run["seen_in_train"] == 10
        both = 10 * run["seen"]["accuracy"] + 30 * run["unseen"]["accuracy"]
        assert both / 40 == pytest.approx(run["scores"]["accuracy"])
    assert any("10 of 40 test examples are in train too" in line for line in report["findings"])


def test_unseen_examples_of_a_seed_without_a_leak_are_all():
    def result(score, **leak):
        return {"scores": {"accuracy": score}, "curve": [], "examples": 9, "split": "test",
                "seen_in_train": 0, "best_step": 1, **leak}  # fmt: skip

    leak = {"seen_in_train": 1, "seen": {"accuracy": 1.0}}
    ours = {0: result(0.9), 1: result(0.8, **leak, unseen={"accuracy": 0.6})}
    theirs = {0: result(0.5), 1: result(0.6, **leak, unseen={"accuracy": 0.3})}
    found = summarise({"pretrained": ours, "tfidf": theirs}, "accuracy", {})
    assert found["ways"][0]["unseen"]["accuracy"]["mean"] == pytest.approx(0.75)
    assert found["ways"][0]["seen"]["accuracy"]["n"] == 1
    told = "on unseen examples alone, pretrained − TF-IDF + logistic regression: +0.3500 ± 0.0500"
    assert told in found["findings"]


def test_a_failed_run_is_one_line(tmp_path, monkeypatch, capsys):
    path = config_file(tmp_path, epochs=1)
    monkeypatch.setattr(sys, "executable", "false")
    assert transfer_report(path, "--seeds", "1") == 1
    error = capsys.readouterr().err
    assert "pretrained, seed 0: the run failed: it said nothing" in error
    assert "Traceback" not in error


def test_a_signal_reaches_the_run_which_saves(tmp_path):
    path = config_file(tmp_path, epochs=None, steps=4000, checkpoint={"every_steps": 0})
    command = [sys.executable, "-m", "finetune", "transfer-report", str(path), "--seeds", "1"]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    run = tmp_path / "run-transfer" / "pretrained-seed-0"
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or len(records(run)) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_PREEMPTED, output
    assert "run the same command again" in output
    log = (tmp_path / "run-transfer" / "logs" / "pretrained-seed-0.txt").read_text()
    stopped = re.search(r"stopped after step (\d+)", log)
    assert stopped is not None
    assert list((run / "checkpoints").glob(f"step_*{stopped[1]}"))
