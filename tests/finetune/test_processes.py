"""Runs of several processes, and runs that are sent a signal."""

import signal
import subprocess
import sys
import time

import pytest

from tests.finetune.test_train import same, weights
from tests.finetune.toys import (
    animal_texts,
    config_file,
    finetune,
    read_report,
    records,
    write_jsonl,
)
from tests.processes import ROOT, environment, run


# In steps of 18 = 2 ranks × 3 micro-batches × 3: whole ones; a last one of 5, cut 3 + 2; a last one
# of 2, for which the second rank is not needed.
@pytest.mark.parametrize("count", [90, 77, 74])
def test_two_ranks_equal_one(tmp_path, count):
    write_jsonl(tmp_path / "train.jsonl", animal_texts(count, 1))
    write_jsonl(tmp_path / "dev.jsonl", animal_texts(31, 2))  # not a whole number of batches
    write_jsonl(tmp_path / "test.jsonl", animal_texts(29, 3))
    shape = {"batch__global_batch_size": 18, "batch__micro_batch_size": 3, "epochs": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    assert finetune(config_file(tmp_path, run__dir=str(one), **shape)) == 0
    path = config_file(tmp_path, run__dir=str(two), **shape)
    status, output = run(["-m", "finetune", str(path)], ranks=2)
    assert status == 0, output
    assert records(one, "loss") == pytest.approx(records(two, "loss"), abs=1e-4)
    assert records(one, "valid_loss") == pytest.approx(records(two, "valid_loss"), abs=1e-4)
    assert [r["tokens_seen"] for r in records(one)] == [r["tokens_seen"] for r in records(two)]
    assert read_report(two)["confusion_matrix"] == read_report(one)["confusion_matrix"]
    assert same(weights(one), weights(two), tolerance=2e-3)
    assert output.count("already finished") == 0


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path):
    straight = config_file(tmp_path, epochs=40, run__dir=str(tmp_path / "straight"))
    assert finetune(straight) == 0
    path = config_file(tmp_path, epochs=40)
    command = [sys.executable, "-m", "finetune", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output
    assert b"run the same command again to go on" in output
    assert finetune(path) == 0
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "run"))
