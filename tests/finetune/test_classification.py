from collections import Counter

import numpy as np
import pytest

from finetune.tasks.classification import (
    Examples,
    collate,
    encode,
    label_names,
    read_examples,
    seen_in,
    split_dev,
    unknown_labels,
)
from finetune.tokenizer import TextTokenizer
from model.hf import read_config
from tests.finetune.toys import checkpoint, write_jsonl


def examples(pairs):
    return Examples([t for t, _ in pairs], [y for _, y in pairs], list(range(2, len(pairs) + 2)))


def test_labels_are_words_or_whole_numbers(tmp_path):
    rows = [{"text": "x", "label": y} for y in (1, "1", " a/b ", "größer 中", True, -3)]
    found, problems = read_examples(write_jsonl(tmp_path / "a.jsonl", rows), "text", "label")
    assert problems == []
    assert found.labels == ["1", "1", "a/b", "größer 中", "true", "-3"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x", "label": 1.5}, "'label' must be a word or a whole number, got float"),
        ({"text": "x", "label": None}, "'label' must be a word or a whole number, got NoneType"),
        ({"text": "x", "label": "  "}, "'label' is empty"),
        ({"text": " \n", "label": "a"}, "'text' is empty"),
        ({"text": 7, "label": "a"}, "'text' must be text, got int"),
        ({"label": "a"}, "no key 'text'; it has 'label'"),
    ],
)
def test_wrong_examples_name_file_and_line(tmp_path, row, message):
    good = {"text": "x", "label": "a"}
    path = write_jsonl(tmp_path / "a.jsonl", [good, row, good])
    found, (problem,) = read_examples(path, "text", "label")
    assert problem.startswith(f"{path}:2: {message}")
    assert found.lines == [1, 3]


def test_many_wrong_lines_are_counted(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "", "label": "a"}] * 12)
    problems = read_examples(path, "text", "label").problems
    assert len(problems) == 4
    assert problems[-1] == f"{path}: and 9 more lines like these"


def test_an_empty_file_is_wrong(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    assert read_examples(tmp_path / "a.jsonl", "text", "label").problems == [
        f"{tmp_path / 'a.jsonl'}: holds no examples"
    ]


def test_classes_are_in_a_natural_order():
    assert label_names(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert label_names(["b", "10", "a", "9"]) == ["10", "9", "a", "b"]
    assert label_names(["1", "--1"]) == ["--1", "1"]  # a word, not a number


def test_unknown_labels_are_listed_once_with_a_line():
    found = unknown_labels(examples([("x", "a"), ("y", "c"), ("z", "c"), ("u", "d")]), ["a"])
    assert found == [("c", 3), ("d", 5)]


def test_dev_is_a_share_of_every_class():
    pairs = [(f"text {i}", "abc"[min(2, i // 60)]) for i in range(130)]  # 60, 60, 10
    train, dev = split_dev(examples(pairs), 0.1, seed=3)
    assert Counter(dev.labels) == {"a": 6, "b": 6, "c": 1}
    assert sorted(zip(train.texts + dev.texts, train.labels + dev.labels, strict=True)) == sorted(
        pairs
    )
    again = split_dev(examples(pairs), 0.1, seed=3)
    assert (again[0].texts, again[1].texts) == (train.texts, dev.texts)
    assert split_dev(examples(pairs), 0.1, seed=4)[1].texts != dev.texts


def test_dev_keeps_copies_together_and_leaves_every_class_to_train():
    pairs = [(f"text {i % 10}", "a") for i in range(100)] + [
        ("only", "b"),
        ("same", "c"),
        ("same", "c"),
    ]
    for seed in range(20):
        train, dev = split_dev(examples(pairs), 0.3, seed)
        assert not set(train.texts) & set(dev.texts)
        assert set(train.labels) == {"a", "b", "c"}
        assert dev.texts
        assert len(set(dev.texts)) == 3


def test_texts_seen_in_training_are_counted():
    assert seen_in(examples([("x", "a"), ("y", "a"), ("x", "b")]), examples([("x", "b")])) == 2


@pytest.fixture
def tokenizer(tmp_path):
    directory = checkpoint(tmp_path / "base")
    return TextTokenizer(directory, read_config(directory), max_length=5)


def test_encoding_and_padding(tokenizer):
    found = encode(
        examples([("w0 w1", "b"), ("w2", "a"), ("w3 w4 w5 w6 w7 w8", "b")]), ["a", "b"], tokenizer
    )
    assert found.lengths.tolist() == [2, 1, 5]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.truncated == 1
    batch = collate(found, np.array([1, 0]), pad_id=0)
    assert batch["input_ids"].tolist() == [[4, 0], [2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["labels"].tolist() == [0, 1]


def test_the_fingerprint_follows_texts_and_labels(tokenizer):
    def fingerprint(*pairs):
        return encode(examples(pairs), ["a", "b"], tokenizer).fingerprint()

    first = fingerprint(("w0 w1", "a"), ("w2", "b"))
    assert first == fingerprint(("w0 w1", "a"), ("w2", "b"))
    others = [
        fingerprint(("w0 w1", "b"), ("w2", "b")),
        fingerprint(("w0", "a"), ("w1 w2", "b")),
        fingerprint(("w2", "b"), ("w0 w1", "a")),
    ]
    assert len({first, *others}) == 4
