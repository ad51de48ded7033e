"""Whole runs of each task over texts: they learn, and what they save is used as it was scored."""

import random

import orjson
import pytest
import torch
import transformers

from finetune.__main__ import main
from tests.finetune.test_texts import bert
from tests.finetune.toys import (
    SIGNS,
    WORDS,
    checkpoint,
    config_file,
    finetune,
    read_report,
    records,
    write_jsonl,
)


def texts_with_sounds(count, seed):
    draw = random.Random(seed)
    for _ in range(count):
        sounds = {name: draw.choice(SIGNS[name]) for name in SIGNS if draw.random() < 0.5}
        words = [*draw.choices(WORDS, k=4), *sounds.values()]
        draw.shuffle(words)
        yield " ".join(words), sorted(sounds)


def files(folder, rows_of):
    for name, count, seed in (("train", 160, 1), ("dev", 40, 2), ("test", 40, 3)):
        write_jsonl(folder / f"{name}.jsonl", rows_of(count, seed))


def predictions(folder, capsysbinary):
    capsysbinary.readouterr()
    assert main(["predict", str(folder / "run"), str(folder / "test.jsonl"), "--device=cpu"]) == 0
    return [orjson.loads(line) for line in capsysbinary.readouterr().out.splitlines()]


LONGER = {"epochs": 8, "optim__lr": 5e-3}


def test_several_classes(tmp_path, capsysbinary):
    files(
        tmp_path,
        lambda n, seed: [{"text": t, "label": found} for t, found in texts_with_sounds(n, seed)],
    )
    assert finetune(config_file(tmp_path, task__kind="multi_label", **LONGER)) == 0
    report = read_report(tmp_path / "run")
    assert report["micro_f1"] > 0.85
    assert report["labels"] == ["cat", "cow", "dog"]
    best = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/best")
    assert best.config.problem_type == "multi_label_classification"
    answers = predictions(tmp_path, capsysbinary)
    rows = [orjson.loads(x) for x in (tmp_path / "test.jsonl").read_bytes().splitlines()]
    right = [a["predicted"] == row["label"] for a, row in zip(answers, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(report["accuracy"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/best")
    inputs = tokenizer([rows[0]["text"]], return_tensors="pt")
    with torch.no_grad():
        theirs = best.eval()(input_ids=inputs["input_ids"]).logits.sigmoid()[0]
    assert list(answers[0]["probabilities"].values()) == pytest.approx(theirs.tolist(), abs=1e-5)


def test_numbers_of_pairs_on_one_rank_or_in_micro_batches(tmp_path, capsysbinary):
    """The number says whether there is a cat."""

    def rows(count, seed):
        for text, found in texts_with_sounds(count, seed):
            first, second = text.split()[:3], text.split()[3:]
            number = 3.5 if "cat" in found else 1
            yield {"a": " ".join(first), "b": " ".join(second), "label": number}

    files(tmp_path, rows)
    keys = {"task__kind": "regression", "task__text_key": "a", "task__pair_key": "b"}
    assert finetune(config_file(tmp_path, **keys, **LONGER)) == 0
    report = read_report(tmp_path / "run")
    assert report["pearson"] > 0.9
    assert report["best"]["metric"] == "pearson"
    answers = predictions(tmp_path, capsysbinary)
    test = [orjson.loads(x) for x in (tmp_path / "test.jsonl").read_bytes().splitlines()]
    errors = [(a["predicted"] - row["label"]) ** 2 for a, row in zip(answers, test, strict=True)]
    assert sum(errors) / len(errors) == pytest.approx(report["mse"], rel=1e-4)
    again = config_file(tmp_path, **keys, **LONGER, run__dir=str(tmp_path / "parts"))
    assert finetune(again, "batch.micro_batch_size=4") == 0
    losses = [records(tmp_path / name, "loss")[:5] for name in ("run", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_choices_of_unequal_number(tmp_path, capsysbinary):
    """The right one repeats the text's last word."""

    def rows(count, seed):
        draw = random.Random(seed)
        for _ in range(count):
            words = draw.sample(WORDS[:12], k=draw.randint(3, 5))
            yield {"text": f"w20 {words[0]}", "choices": words, "label": words[0]}

    def shuffled(count, seed):
        draw = random.Random(seed + 10)
        for row in rows(count, seed):
            draw.shuffle(row["choices"])
            yield row

    files(tmp_path, shuffled)
    bert(tmp_path / "base")
    assert finetune(config_file(tmp_path, task__kind="choice", **{**LONGER, "epochs": 2})) == 0
    report = read_report(tmp_path / "run")
    answers = predictions(tmp_path, capsysbinary)
    test = [orjson.loads(x) for x in (tmp_path / "test.jsonl").read_bytes().splitlines()]
    right = [a["predicted"] == row["label"] for a, row in zip(answers, test, strict=True)]
    assert sum(right) / len(right) == pytest.approx(report["accuracy"])
    transformers.AutoModelForMultipleChoice.from_pretrained(tmp_path / "run/best")


def test_a_causal_model_has_no_choices(tmp_path, capsys):
    files(tmp_path, lambda n, _: [{"text": "w1", "choices": ["w2", "w3"], "label": 0}] * n)
    checkpoint(tmp_path / "base")
    assert finetune(config_file(tmp_path, task__kind="choice")) == 2
    assert (
        "a llama model has no head 'choice', which task.kind: choice needs"
        in capsys.readouterr().err
    )
