"""Whole runs with robust objectives and noise: refusals, ranks, resuming, what is saved."""

import json

import pytest

from finetune.config import BEST
from tests.finetune.test_train import LEARN, same, stop_after, weights
from tests.finetune.toys import (
    animal_texts,
    checkpoint,
    config_file,
    finetune,
    read_report,
    records,
    write_jsonl,
)
from tests.processes import run

NOISE = {"delete": 0.1, "swap": 0.1, "replace": 0.1}


@pytest.mark.parametrize(
    "robust",
    [
        {"adversarial": "fgm", "augment": NOISE, "label_smoothing": 0.1},
        {"adversarial": "freelb", "ascent_steps": 2, "class_weights": {"cat": 2.0}},
        {"r_drop": 1.0, "dropout": 0.1},
        {"mixup": 0.3, "augment": {"delete": 0.2}},
    ],
    ids=lambda keys: "-".join(keys),
)
def test_a_run_learns(tmp_path, robust):
    for name, count, seed in (("train", 300, 1), ("dev", 60, 2), ("test", 60, 3)):
        write_jsonl(tmp_path / f"{name}.jsonl", animal_texts(count, seed, longest=6))
    assert finetune(config_file(tmp_path, **{**LEARN, "optim__lr": 3e-3, "robust": robust})) == 0
    assert read_report(tmp_path / "run")["accuracy"] >= 0.9


@pytest.mark.parametrize(
    "robust",
    [
        {"adversarial": "pgd", "ascent_steps": 2, "balance_classes": True, "augment": NOISE},
        {"label_smoothing": 0.1, "focal_gamma": 2.0, "augment": NOISE},
    ],
    ids=["pgd", "focal"],
)
def test_two_ranks_equal_one(tmp_path, robust):
    shape = {"batch__global_batch_size": 18, "batch__micro_batch_size": 3, "robust": robust}
    one, two = tmp_path / "one", tmp_path / "two"
    shape["batch__micro_batch_size"] = 6  # what happens to a text does not depend on its company
    assert finetune(config_file(tmp_path, run__dir=str(one), **shape)) == 0
    shape["batch__micro_batch_size"] = 3
    path = config_file(tmp_path, run__dir=str(two), **shape)
    status, output = run(["-m", "finetune", str(path)], ranks=2)
    assert status == 0, output
    assert records(one, "loss") == pytest.approx(records(two, "loss"), abs=1e-4)
    assert records(one, "valid_loss") == pytest.approx(records(two, "valid_loss"), abs=1e-4)


@pytest.mark.parametrize(
    "robust",
    [{"mixup": 0.5, "dropout": 0.1, "augment": NOISE}, {"adversarial": "freelb", "dropout": 0.1}],
    ids=["mixup", "freelb"],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, robust):
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    assert finetune(config_file(tmp_path, run__dir=str(straight), robust=robust)) == 0
    path = config_file(tmp_path, run__dir=str(parts), robust=robust)
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        assert finetune(path) == 75
    assert finetune(path) == 0
    assert same(weights(straight), weights(parts))
    assert records(straight, "loss") == records(parts, "loss")


def test_dropout_of_the_run_is_saved_with_the_model(tmp_path):
    checkpoint(tmp_path / "base", family="bert", pad_token_id=0)
    assert finetune(config_file(tmp_path, robust__dropout=0.25, epochs=1)) == 0
    saved = json.loads((tmp_path / "run" / BEST / "config.json").read_text())
    assert saved["hidden_dropout_prob"] == 0.25


@pytest.mark.parametrize(
    ("robust", "told"),
    [
        ({"class_weights": {"horse": 2.0}}, "robust.class_weights: train has no class 'horse'; "),
        ({"r_drop": 1.0, "dropout": 0}, "robust.r_drop: the model has no dropout"),
        ({"augment": {"mask": 0.1}}, "robust.augment.mask: the tokenizer of "),
        ({"mixup": 1.0, "adversarial": "fgm"}, "robust.mixup: does not go together with robust."),
        ({"adversarial": "fmg"}, "did you mean fgm?"),
    ],
    ids=["class", "dropout", "mask", "two", "name"],
)
def test_mistakes_are_told_before_the_run(tmp_path, capsys, robust, told):
    assert finetune(config_file(tmp_path, robust=robust)) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
