from collections import Counter

import numpy as np
import pytest

from finetune.tasks import task_of
from finetune.tasks.base import seen_in, split_dev
from finetune.tasks.classification import TextExample
from finetune.tasks.config import TaskKeys
from finetune.tokenizer import TextTokenizer
from model.hf import read_config
from tests.finetune.toys import checkpoint, write_jsonl

TASK = task_of(TaskKeys())


def examples(pairs):
    return [TextExample(line, text, label) for line, (text, label) in enumerate(pairs, start=2)]


def texts(found):
    return [example.text for example in found]


def labels(found):
    return [example.label for example in found]


def test_labels_are_words_or_whole_numbers(tmp_path):
    rows = [{"text": "x", "label": y} for y in (1, "1", " a/b ", "größer 中", True, -3)]
    found, problems = TASK.read(write_jsonl(tmp_path / "a.jsonl", rows))
    assert problems == []
    assert labels(found) == ["1", "1", "a/b", "größer 中", "true", "-3"]


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
    found, (problem,) = TASK.read(path)
    assert problem.startswith(f"{path}:2: {message}")
    assert [example.line for example in found] == [1, 3]


def test_many_wrong_lines_are_counted(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "", "label": "a"}] * 12)
    problems = TASK.read(path).problems
    assert len(problems) == 4
    assert problems[-1] == f"{path}: and 9 more lines like these"


def test_an_empty_file_is_wrong(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    assert TASK.read(tmp_path / "a.jsonl").problems == [
        f"{tmp_path / 'a.jsonl'}: holds no examples"
    ]


def test_classes_are_in_a_natural_order():
    def names(*found):
        return TASK.label_names(examples([("x", name) for name in found]))

    assert names("10", "9", "-1", "9") == ["-1", "9", "10"]
    assert names("b", "10", "a", "9") == ["10", "9", "a", "b"]
    assert names("1", "--1") == ["--1", "1"]  # a word, not a number


def test_unknown_labels_are_listed_once_with_a_line():
    found = examples([("x", "a"), ("y", "c"), ("z", "c"), ("u", "d")])
    (problem,) = TASK.check("test", found, ["a"])
    assert problem.startswith("labels that train never has: 'c' (line 3), 'd' (line 5); add ")
    assert TASK.check("test", found, ["a", "c", "d"]) == []
    assert TASK.check("train", found[:1], ["a"]) == [
        "every text has the label 'a'; two classes or more are needed"
    ]


def test_texts_to_predict_on_need_no_label(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "", "label": "a"}])
    good, wrong = TASK.stream(path, labelled=False)
    assert good == TextExample(1, "x", None)
    assert (wrong.line, wrong.text[:15]) == (2, "'text' is empty")


def test_dev_is_a_share_of_every_class():
    pairs = [(f"text {i}", "abc"[min(2, i // 60)]) for i in range(130)]  # 60, 60, 10
    train, dev = split_dev(examples(pairs), 0.1, seed=3)
    assert Counter(labels(dev)) == {"a": 6, "b": 6, "c": 1}
    assert sorted((e.text, e.label) for e in train + dev) == sorted(pairs)
    again = split_dev(examples(pairs), 0.1, seed=3)
    assert again == (train, dev)
    assert split_dev(examples(pairs), 0.1, seed=4)[1] != dev


def test_dev_keeps_copies_together_and_leaves_every_class_to_train():
    pairs = [(f"text {i % 10}", "a") for i in range(100)] + [
        ("only", "b"),
        ("same", "c"),
        ("same", "c"),
    ]
    for seed in range(20):
        train, dev = split_dev(examples(pairs), 0.3, seed)
        assert not set(texts(train)) & set(texts(dev))
        assert set(labels(train)) == {"a", "b", "c"}
        assert dev
        assert len(set(texts(dev))) == 3


def test_texts_seen_in_training_are_counted():
    found = examples([("x", "a"), ("y", "a"), ("x", "b")])
    assert seen_in(found, examples([("x", "b")])) == [True, False, True]


@pytest.fixture
def tokenizer(tmp_path):
    directory = checkpoint(tmp_path / "base")
    return TextTokenizer(directory, read_config(directory), max_length=5)


def test_encoding_and_padding(tokenizer):
    found = TASK.encode(
        examples([("w0 w1", "b"), ("w2", "a"), ("w3 w4 w5 w6 w7 w8", "b")]), ["a", "b"], tokenizer
    )
    assert found.lengths.tolist() == [2, 1, 5]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.truncated == 1
    batch = found.batch(np.array([1, 0]), pad_id=0)
    assert batch["input_ids"].tolist() == [[4, 0], [2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["labels"].tolist() == [0, 1]


def test_the_fingerprint_follows_texts_and_labels(tokenizer):
    def fingerprint(*pairs):
        return TASK.encode(examples(pairs), ["a", "b"], tokenizer).fingerprint()

    first = fingerprint(("w0 w1", "a"), ("w2", "b"))
    assert first == fingerprint(("w0 w1", "a"), ("w2", "b"))
    others = [
        fingerprint(("w0 w1", "b"), ("w2", "b")),
        fingerprint(("w0", "a"), ("w1 w2", "b")),
        fingerprint(("w2", "b"), ("w0 w1", "a")),
    ]
    assert len({first, *others}) == 4
