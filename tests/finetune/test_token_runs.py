"""Whole runs of tagging: what they learn, and what transformers makes of it."""

import json
import random

import orjson
import pytest
import torch
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from transformers import AutoModelForTokenClassification, AutoTokenizer

from finetune.__main__ import main
from tests.finetune.toys import (
    SIGNS,
    WORDS,
    checkpoint,
    config_file,
    finetune,
    read_report,
    write_jsonl,
)


def tagged_texts(count, seed):
    """Random words; each animal's sounds are entities, also two words long."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(draw.randint(2, 5)):
            words.append(draw.choice(WORDS))
            tags.append("O")
            kind = draw.choice(sorted(SIGNS))
            length = draw.randint(0, 2)
            words += draw.choices(SIGNS[kind], k=length)
            tags += [f"{'BI'[i > 0]}-{kind}" for i in range(length)]
        rows.append({"tokens": words, "tags": tags})
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tagging")
    for name, count, seed in (("train", 200, 1), ("dev", 40, 2), ("test", 40, 3)):
        write_jsonl(directory / f"{name}.jsonl", tagged_texts(count, seed))
    checkpoint(directory / "base", family="modernbert")
    config = config_file(
        directory,
        task={"kind": "token", "max_length": 32},
        epochs=8,
        optim__lr=1e-2,
        schedule__warmup_steps=5,
    )
    assert finetune(config) == 0
    return directory


def test_entities_are_learned_and_scored_as_by_seqeval(run):
    report = read_report(run / "run")
    assert report["f1"] > 0.9
    rows = [orjson.loads(line) for line in (run / "run/predictions.jsonl").open()]
    gold = [json.loads(line)["tags"] for line in (run / "test.jsonl").open()]
    found = [row["tags"] for row in rows]
    assert report["f1"] == pytest.approx(f1_score(gold, found, mode="strict", scheme=IOB2))
    assert sum(report["classes"][name]["support"] for name in SIGNS) == report["entities"]


def test_transformers_opens_it_and_says_the_same(run):
    best = run / "run/best"
    net = AutoModelForTokenClassification.from_pretrained(best).eval()
    tokenizer = AutoTokenizer.from_pretrained(best)
    assert net.config.id2label[0] == "O"
    rows = [orjson.loads(line) for line in (run / "run/predictions.jsonl").open()]
    for row in rows:
        batch = tokenizer(row["text"], return_tensors="pt")
        with torch.no_grad():
            classes = (
                net(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits[0].argmax(-1)
            )
        assert [net.config.id2label[int(i)] for i in classes] == row["tags"]


def test_new_text_is_tagged(run, tmp_path, capsys):
    text = "w1 miaow purr w2"
    rows = [{"text": text}]
    assert main(["predict", str(run / "run"), str(write_jsonl(tmp_path / "a.jsonl", rows))]) == 0
    (row,) = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    (found,) = row["predicted"]
    assert found.pop("probability") > 0.5
    assert row == {
        "index": 0,
        "text": text,
        "predicted": [{"label": "cat", "start": 3, "end": 13, "text": "miaow purr"}],
    }
    (tmp_path / "b.txt").write_text("w1\nmiaow\n\nw2\nw3\nmoo\n")
    assert main(["predict", str(run / "run"), str(tmp_path / "b.txt")]) == 0
    rows = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["tags"] for row in rows] == [["O", "B-cat"], ["O", "O", "B-cow"]]
