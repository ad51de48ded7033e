"""Pairs, sets of classes, numbers and choices: reading, encoding, scores, against independents."""

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from sklearn import metrics as sk
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from finetune.models import open_model
from finetune.tasks import task_of
from finetune.tasks.config import TaskKeys
from finetune.tasks.regression import pearson, ranks
from finetune.tokenizer import TextTokenizer
from model import load_pretrained, save_pretrained
from model.hf import read_config
from runtime.errors import UserError
from tests.finetune.toys import END, WORDS, checkpoint, write_jsonl


def bert_tokenizer() -> Tokenizer:
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", END, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def bert(directory, **shape):
    return checkpoint(directory, bert_tokenizer(), "bert", pad_token_id=0, **shape)


def task(kind="classification", **keys):
    return task_of(TaskKeys(kind=kind, **keys))


def read(kind, path, **keys):
    return task(kind, **keys).read(path)


@pytest.fixture
def pairs_file(tmp_path):
    rows = [
        {"a": "w1 w2 w3", "b": "w4", "label": 1.5},
        {"a": "w5", "b": "w6 w7 w8 w9 w10 w11 w12 w13", "label": 3},
        {"a": "w1 w2 w3", "b": "w14 w2", "label": "0.25"},
    ]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


PAIR = {"text_key": "a", "pair_key": "b"}


def test_pairs_are_encoded_as_transformers_does(tmp_path, pairs_file):
    directory = bert(tmp_path / "base")
    own = task("regression", **PAIR)
    examples, problems = own.read(pairs_file)
    assert problems == []
    tokenizer = TextTokenizer(directory, read_config(directory), max_length=9)
    tokenizer.write_settings(directory)
    data = own.encode(examples, [], tokenizer)
    assert data.truncated == 1
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    expected = theirs(
        [e.first for e in examples],
        [e.second for e in examples],
        truncation=True,
        padding=True,
        return_tensors="np",
        return_token_type_ids=True,
    )
    batch = data.batch(np.arange(3), tokenizer.pad_id)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert batch[name].tolist() == expected[name].tolist(), name
    assert batch["token_type_ids"].sum() > 0
    assert batch["labels"].tolist() == [1.5, 3.0, 0.25]
    assert batch["labels"].dtype == np.float32


def test_models_without_segments_get_none(tmp_path, pairs_file):
    directory = checkpoint(tmp_path / "base")
    own = task("regression", **PAIR)
    data = own.encode(own.read(pairs_file)[0], [], TextTokenizer(directory, read_config(directory)))
    assert data.segments is None
    assert data.lengths.tolist() == [4, 9, 5]


def test_the_same_first_text_with_another_second_is_another_example(pairs_file):
    examples, _ = read("regression", pairs_file, **PAIR)
    assert examples[0].first == examples[2].first
    assert len({example.text for example in examples}) == 3


def test_pairs_of_a_file_without_header(tmp_path):
    path = tmp_path / "sts.csv"
    path.write_text('"A man, walking.",He walks.,4.2\nx,y,0\n')
    keys = {**PAIR, "columns": ["a", "b", "label"]}
    examples, problems = read("regression", path, **keys)
    assert problems == []
    assert [(e.line, e.first, e.second, e.label) for e in examples] == [
        (1, "A man, walking.", "He walks.", 4.2),
        (2, "x", "y", 0.0),
    ]
    path.write_text("a,b,label\nx,y,0\nx,y\n")  # it has one after all
    examples, (problem,) = read("regression", path, **keys)
    assert len(examples) == 1
    assert problem == f"{path}:3: 2 columns, expected the header's 3"
    path.write_text("x,y\n")
    (problem,) = read("regression", path, **{**keys, "columns": ["a", "c"]}).problems[:1]
    assert problem.startswith(f"{path}:1: no column 'b'; it has 'a', 'c'")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("regression", {"label": "high"}, "'label' must be a number, got 'high'"),
        ("regression", {"label": " "}, "'label' must be a number, got nothing"),
        ("regression", {"label": True}, "'label' must be a number, got bool"),
        ("regression", {"label": "nan"}, "'label' must be finite: 'nan'"),
        ("regression", {"label": None}, "'label' must be a number, got NoneType"),
        ("multi_label", {"label": {"a": 1}}, "'label' must be a list of words, got dict"),
        ("multi_label", {"label": ["a", 1.5]}, "'label' must be a list of words, got one with fl"),
        ("multi_label", {"label": ["a", " "]}, "'label' has an empty class; leave it out"),
        ("multi_label", {"label": ["b", "a", "b"]}, "'label' has 'b' twice"),
        ("choice", {"label": 0}, "no key 'choices'"),
        ("choice", {"label": 0, "choices": "a"}, "'choices' must be a list of texts, got str"),
        ("choice", {"label": 0, "choices": ["a"]}, "'choices' has 1 texts; two or more"),
        ("choice", {"label": 0, "choices": ["a", 2]}, "'choices' must be a list of texts, got one"),
        ("choice", {"label": 0, "choices": ["a", " "]}, "'choices' has an empty text"),
        ("choice", {"label": 0, "choices": ["a", "a"]}, "'choices' has 'a' twice"),
        ("choice", {"label": 2, "choices": ["a", "b"]}, "'label' must be one of the 2 choices"),
        ("choice", {"label": "C", "choices": ["x", "y"]}, "'label' must be one of the 2 choices"),
        ("choice", {"label": -1, "choices": ["x", "y"]}, "'label' must be one of the 2 choices"),
    ],
)  # fmt: skip
def test_wrong_examples_name_file_and_line(tmp_path, kind, row, message):
    good = {"text": "x", "label": 0, "choices": ["p", "q"]}
    path = write_jsonl(tmp_path / "a.jsonl", [good, {"text": "x", **row}])
    examples, (problem,) = read(kind, path)
    assert problem.startswith(f"{path}:2: {message}")
    assert len(examples) == 1


def test_sets_of_classes_from_lists_and_from_text(tmp_path):
    rows = [{"text": "x", "label": y} for y in (["b", "a"], [], "a|c", "", 3)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    own = task("multi_label", separator="|")
    examples, problems = own.read(path)
    assert problems == []
    assert [e.label for e in examples] == [("a", "b"), (), ("a", "c"), (), ("3",)]
    assert own.label_names(examples) == ["3", "a", "b", "c"]
    (problem,) = own.check("dev", examples, ["a", "b"])
    assert problem.startswith("labels that train never has: 'c' (line 3), '3' (line 5); add ")
    assert own.check("train", examples[1:2], []) == [
        "no text has a class; there is nothing to learn"
    ]
    assert read("multi_label", path).examples[2].label == ("a|c",)


def test_the_right_choice_is_a_text_a_number_or_a_letter(tmp_path):
    labels = (1, "1", "b", "B", "red", "2")
    choices = [["x", "y"]] * 4 + [["blue", "red"], ["2", "1"]]
    rows = [{"text": "t", "choices": c, "label": y} for c, y in zip(choices, labels, strict=True)]
    examples, problems = read("choice", write_jsonl(tmp_path / "a.jsonl", rows))
    assert problems == []
    assert [e.label for e in examples] == [1, 1, 1, 1, 1, 0]


def random_outputs(data, n, seed=0):
    draw = np.random.default_rng(seed)
    return list(draw.normal(size=(len(data), n)).astype(np.float32))


def encoded(own, rows, tmp_path, labels=()):
    directory = bert(tmp_path / "base")
    tokenizer = TextTokenizer(directory, read_config(directory), max_length=12)
    examples, problems = own.read(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert problems == []
    return own.encode(examples, list(labels), tokenizer), directory, tokenizer


def test_correlations_equal_scipys():
    draw = np.random.default_rng(3)
    for size in (2, 5, 40):
        gold, found = draw.integers(0, 4, size).astype(float), draw.normal(size=size)
        gold[0] = 9
        assert pearson(gold, found) == pytest.approx(stats.pearsonr(gold, found).statistic)
        assert ranks(gold).tolist() == stats.rankdata(gold).tolist()
        expected = stats.spearmanr(gold, found).statistic
        assert pearson(ranks(gold), ranks(found)) == pytest.approx(expected)
    assert pearson(np.ones(3), np.arange(3.0)) == 0


def test_scores_of_numbers(tmp_path):
    own = task("regression")
    rows = [{"text": f"w{i}", "label": i / 2} for i in range(8)]
    data, _, _ = encoded(own, rows, tmp_path)
    found = random_outputs(data, 1)
    flat = np.concatenate(found)
    scores = own.scores(data, found, [])
    assert scores["mse"] == pytest.approx(sk.mean_squared_error(data.labels, flat), rel=1e-6)
    assert scores["loss"] == scores["mse"]
    assert scores["pearson"] == pytest.approx(stats.pearsonr(data.labels, flat).statistic)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(data.labels, flat).statistic)
    (first, *_) = own.predictions(data, found, [])
    assert first == {"label": 0.0, "predicted": pytest.approx(float(flat[0]), abs=1e-6)}


def test_scores_of_sets_equal_scikit_learns(tmp_path):
    names = ["a", "b", "c", "never"]
    own = task("multi_label", threshold=0.4)
    draw = np.random.default_rng(1)
    rows = [
        {"text": f"w{i}", "label": [n for n in names[:3] if draw.random() < 0.4]} for i in range(30)
    ]
    data, _, _ = encoded(own, rows, tmp_path, names)
    found = [row - [0, 0, 0, 99] for row in random_outputs(data, 4)]
    logits = torch.tensor(np.stack(found))
    chosen = (logits.sigmoid() >= 0.4).numpy()
    scores = own.scores(data, found, names)
    gold = data.labels > 0
    kept = {"y_true": gold[:, :3], "y_pred": chosen[:, :3], "zero_division": 0}
    assert scores["micro_f1"] == pytest.approx(sk.f1_score(gold, chosen, average="micro"))
    assert scores["macro_f1"] == pytest.approx(sk.f1_score(**kept, average="macro"))
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(gold, chosen))
    assert scores["hamming_loss"] == pytest.approx(sk.hamming_loss(gold, chosen))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.double(), torch.tensor(data.labels).double()
    )
    assert scores["loss"] == pytest.approx(float(loss), rel=1e-6)
    report = own.report(data, found, names)
    assert report["classes"]["b"]["support"] == int(gold[:, 1].sum())
    assert report["classes"]["never"]["support"] == 0
    assert report["macro avg"]["f1-score"] == scores["macro_f1"]
    assert "never" not in own.report_text(data, found, names)
    for row, answer in zip(chosen, own.predictions(data, found, names), strict=True):
        assert answer["predicted"] == [
            n for n, is_there in zip(names, row, strict=True) if is_there
        ]


CHOICES = [
    {"text": "w1 w2", "question": "w3", "choices": ["w4", "w5 w6", "w7"], "label": 2},
    {"text": "w8", "question": "w9", "choices": ["w10", "w11"], "label": 0},
    {"text": "w1 w2 w3 w4 w5 w6 w7 w8 w9", "question": "w9", "choices": ["w12", "w13"], "label": 1},
]


def test_choices_are_scored_as_transformers_does(tmp_path):
    own = task("choice", pair_key="question")
    data, directory, tokenizer = encoded(own, CHOICES, tmp_path)
    assert (len(data), data.rows_per_item, data.truncated) == (3, 3, 1)
    assert data.counts(np.arange(3)) == 3
    net = load_pretrained(directory, head="choice", **own.head_settings([]))
    net.score.weight.data.normal_()
    batch = {k: torch.as_tensor(v) for k, v in data.batch(np.arange(3), 0).items()}
    assert batch["input_ids"].shape == (3, 3, 12)
    with torch.no_grad():
        found = own.infer(net, batch)
        loss = net(**batch).loss
    assert [len(row) for row in found] == [3, 2, 2]
    scores = own.scores(data, found, [])
    assert scores["loss"] == pytest.approx(float(loss), rel=1e-5)

    from model import save_pretrained

    save_pretrained(net, tmp_path / "out", tokenizer_dir=directory)
    tokenizer.write_settings(tmp_path / "out")
    theirs = transformers.BertForMultipleChoice.from_pretrained(tmp_path / "out").eval()
    read_by_them = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for row, got in zip(CHOICES, found, strict=True):
        encodings = read_by_them(
            [row["text"]] * len(row["choices"]),
            [f"{row['question']} {choice}" for choice in row["choices"]],
            truncation=True,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=True,
        )
        with torch.no_grad():
            logits = theirs(**{k: v[None] for k, v in encodings.items()}).logits[0]
        assert got == pytest.approx(logits.log_softmax(-1).numpy(), abs=1e-5)


def test_predicted_choices_are_texts(tmp_path):
    own = task("choice", pair_key="question")
    data, _, _ = encoded(own, CHOICES, tmp_path)
    found = [np.log(np.array(p, np.float32)) for p in ([0.2, 0.5, 0.3], [0.9, 0.1], [0.4, 0.6])]
    assert own.scores(data, found, [])["accuracy"] == pytest.approx(2 / 3)
    first, second, _ = own.predictions(data, found, [])
    assert first["predicted"] == "w5 w6"
    assert (first["choice"], first["label"]) == (1, "w7")
    assert second["probabilities"] == pytest.approx([0.9, 0.1])


def test_a_label_that_means_two_choices_is_refused(tmp_path):
    rows = [
        {"text": "q", "choices": ["2", "3", "4"], "label": label} for label in ("2", 2, "3", "4")
    ]
    found, (problem,) = read("choice", write_jsonl(tmp_path / "a.jsonl", rows))
    assert [example.label for example in found] == [2, 1, 2]  # a place, and two texts
    assert ":1: " in problem
    assert "'2' is a choice, and the number or letter of another" in problem


def test_released_models_say_what_they_predict(tmp_path):
    directory = bert(tmp_path / "a")
    text = TextTokenizer(directory, read_config(directory)).encode(["w1 w2"])[0][0]
    for name, kind in (("regression", "regression"), ("multi_label_classification", "multi_label")):
        settings = {"problem_type": name, "num_labels": 1 if kind == "regression" else 3}
        net = load_pretrained(directory, head="sequence", **settings)
        save_pretrained(net, tmp_path / kind, tokenizer_dir=directory)
        opened = open_model(tmp_path / kind)
        assert opened.task.kind == kind
        assert opened.labels == ([] if kind == "regression" else ["LABEL_0", "LABEL_1", "LABEL_2"])
        with torch.no_grad():
            logits = opened.net.eval()(torch.tensor(text)[None].long()).logits
        (kept,) = opened.task.reduce(logits, {})
        assert np.size(kept) == settings["num_labels"]
    settings = {"problem_type": "regression", "num_labels": 3}
    net = load_pretrained(directory, head="sequence", **settings)
    save_pretrained(net, tmp_path / "several", tokenizer_dir=directory)
    with pytest.raises(UserError, match="predicts 3 numbers of each text"):
        open_model(tmp_path / "several")
