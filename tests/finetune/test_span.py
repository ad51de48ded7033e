"""Questions and answers: what files say, windows, and the best span among them."""

import json
import random

import numpy as np
import orjson
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedTokenizerFast

from finetune.__main__ import main
from finetune.config import FinetuneConfig
from finetune.tasks import task_of
from finetune.tasks.config import TaskKeys
from finetune.tasks.question_files import Question
from finetune.tasks.span import best_spans
from finetune.tokenizer import TextTokenizer
from model import build, preset
from model.hf import read_config
from runtime.config import ConfigError, load
from tests.finetune.toys import (
    WORDS,
    byte_tokenizer,
    checkpoint,
    config_file,
    finetune,
    read_report,
    word_tokenizer,
    write_jsonl,
)

TEXT = "At noon Ada met Bob. Later Ada met Eve in Rome."


def task(**keys):
    return task_of(TaskKeys(kind="span", **{"max_length": 32, **keys}))


def asked(answers, name="q1", **more):
    return {"id": name, "question": "Who?", "answers": answers, **more}


def answer(text, start):
    return {"text": text, "answer_start": start}


def read(path, *questions, context=TEXT, indent=1, **keys):
    nested = {"data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]}
    path.write_text(json.dumps(nested, indent=indent, ensure_ascii=False), encoding="utf-8")
    return task(**keys).read(path)


# --- files


def test_squads_layout(tmp_path):
    path = tmp_path / "a.json"
    found, problems = read(path, asked([answer("Ada", 27)]), asked([answer(" Rome", 41)], "q2"))
    assert problems == []
    assert [(q.id, q.answer, q.start, q.is_moved) for q in found] == [
        ("q1", "Ada", 27, False),
        ("q2", "Rome", 42, False),
    ]
    lines = path.read_text().splitlines()
    assert ['"id": "q1"' in lines[found[0].line - 1], '"id": "q2"' in lines[found[1].line - 1]]
    assert all(q.context == TEXT for q in found)


@pytest.mark.parametrize(
    "answers",
    [
        [answer("Eve", 35)],
        {"text": ["Eve"], "answer_start": [35]},
        "Eve",
        ["Eve"],
    ],
)
def test_one_question_a_line(tmp_path, answers):
    row = {"question": "Who?", "context": TEXT, "answers": answers}
    (found,), problems = task().read(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert problems == []
    assert (found.answer, found.start, found.answers, found.is_moved) == (
        "Eve",
        35,
        ("Eve",),
        False,
    )


def test_answers_are_looked_for_where_offsets_are_off(tmp_path):
    context = "𫚭" + TEXT  # counted as two by what counts in UTF-16
    found, problems = read(tmp_path / "a.json", asked([answer("Ada", 29)]), context=context)
    assert problems == []
    assert (found[0].start, found[0].is_moved) == (28, True)
    found, _ = read(tmp_path / "a.json", asked([answer("Zoe", 3), answer("Bob", 16)]))
    assert (found[0].answer, found[0].missing, found[0].is_moved) == ("Bob", 1, False)
    assert found[0].answers == ("Zoe", "Bob")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (asked([answer("Zoe", 3)]), "question 'q1': its text does not hold the answer 'Zoe'"),
        (asked([]), "question 'q1': has no answer; give one, or set task.impossible: true"),
        (asked([answer("", 3)]), "question 'q1': its answers must be texts"),
        (asked([answer("Ada", "3")]), "question 'q1': its answers must be texts"),
        (asked(None), "question 'q1': its answers must be texts"),
        ({"id": "q1", "answers": ["Ada"]}, "question 'q1': its question is no text"),
    ],
)
def test_wrong_questions_name_line_and_id(tmp_path, question, message):
    good = asked([answer("Ada", 8)], "q0")
    found, (problem,) = read(tmp_path / "a.json", good, question, good)
    line = next(
        i for i, x in enumerate((tmp_path / "a.json").read_text().splitlines(), 1) if '"q1"' in x
    )
    assert problem.startswith(f"{tmp_path / 'a.json'}:{line}: {message}")
    assert len(found) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid JSON"),
        ("[]", "no SQuAD layout: expected an object with a list 'data'"),
        ('{"data": [7]}', "entry 0 of 'data' has no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": 3}]}]}', "a paragraph of entry 0 of 'data' has no"),
    ],
)
def test_other_json_is_refused(tmp_path, content, message, capsys):
    (tmp_path / "a.json").write_text(content)
    config = config_file(tmp_path, task={"kind": "span"}, data__train=str(tmp_path / "a.json"))
    assert finetune(config) == 2
    assert message in capsys.readouterr().err


def test_windows_must_bring_something_new():
    with pytest.raises(ValueError, match=r"task\.stride: 90 leaves windows of 100 tokens nothing"):
        TaskKeys(kind="span", max_length=100, stride=90)
    with pytest.raises(ValueError, match=r"task\.max_length: a window of 8 tokens is too short"):
        TaskKeys(kind="span", max_length=8)
    assert TaskKeys(kind="span", max_length=99).window_stride == 33


def test_a_config_tells_it_too(tmp_path):
    with pytest.raises(ConfigError, match="leaves windows of 100 tokens nothing new"):
        load(FinetuneConfig, config_file(tmp_path, task={"kind": "span", "max_length": 100,
                                                         "stride": 90}))  # fmt: skip


# --- windows


def bert_like():
    """Words, with [CLS]-like marks around and between, and segments."""
    tokenizer = word_tokenizer()
    mark = ("<|endoftext|>", 0)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>",
        pair="<|endoftext|>:0 $A:0 <|endoftext|>:0 $B:1 <|endoftext|>:1",
        special_tokens=[mark],
    )
    return tokenizer


def text_tokenizer(directory, tokenizer, family="bert", max_length=16):
    directory = checkpoint(directory, tokenizer, family)
    return TextTokenizer(directory, read_config(directory), max_length)


def test_windows_are_those_of_transformers(tmp_path):
    draw = random.Random(3)
    ours = text_tokenizer(tmp_path / "base", bert_like())
    theirs = PreTrainedTokenizerFast(tokenizer_object=bert_like())
    for length in (1, 5, 10, 11, 30, 50):
        question, context = (" ".join(draw.choices(WORDS, k=k)) for k in (3, length))
        ((windows, is_cut),) = ours.encode_windows([(question, context)], 4)
        expected = theirs(
            [question], [context], truncation="only_second", max_length=16, stride=4,
            return_overflowing_tokens=True, return_offsets_mapping=True, return_token_type_ids=True,
        )  # fmt: skip
        assert [w.ids.tolist() for w in windows] == expected["input_ids"]
        assert [w.segments.tolist() for w in windows] == expected["token_type_ids"]
        assert not is_cut
        for i, window in enumerate(windows):
            is_text = [one == 1 for one in expected.sequence_ids(i)]
            offsets = np.array(expected["offset_mapping"][i])
            assert (window.offsets[is_text] == offsets[is_text]).all()
            assert (window.offsets[~np.array(is_text)] == -1).all()
    # What comes after is cut as ever.
    assert [len(row) for row in ours.encode(["w1 " * 40])[0]] == [16 - 1]


def test_long_questions_are_cut_and_counted(tmp_path):
    ours = text_tokenizer(tmp_path / "base", bert_like())
    context = " ".join(WORDS[:20])
    example = Question(1, "q", "w1 w2 w3 w4 w5 w6", context, ("w7",), 21, "w7")
    data = task(max_length=16).encode([example], [], ours)
    assert data.truncated == 1
    plain = ours.encode_windows([("w1 w2 w3 w4", context)], 5)
    assert [data.row(i).tolist() for i in range(len(data))] == [
        w.ids.tolist() for w in next(plain)[0]
    ]


@pytest.mark.parametrize(
    ("make", "family", "length"), [(bert_like, "bert", 24), (byte_tokenizer, "gpt2", 60)]
)
def test_labels_stand_where_the_answer_is(tmp_path, make, family, length):
    ours = text_tokenizer(tmp_path / "base", make(), family, length)
    draw = random.Random(4)
    hits = missing = 0
    for _ in range(60):
        words = draw.choices([*WORDS, "中国"], k=25)
        first = draw.randint(0, 23)
        last = draw.randint(first, min(first + 3, 24))
        context, start = " ".join(words), len(" ".join(words[:first])) + (first > 0)
        text = " ".join(words[first : last + 1])
        example = Question(1, "q", "w1", context, (text,), start, text)
        data = task(stride=8).encode([example], [], ours)
        for i, (begin, end) in enumerate(data.labels.tolist()):
            offsets = data.offsets[i]
            if (begin, end) == (0, 0):
                is_text = offsets[:, 0] >= 0
                inside = offsets[is_text]
                assert inside[0, 0] > start or inside[-1, 1] < start + len(text)
                missing += 1
            else:
                found = context[offsets[begin, 0] : offsets[end, 1]]
                assert found.strip() == text
                assert offsets[begin - 1, 1] <= start
                hits += 1
    assert hits > 50
    assert missing > 20


def test_answers_in_no_window_whole_are_counted(tmp_path):
    ours = text_tokenizer(tmp_path / "base", bert_like())
    context = " ".join(WORDS)
    text = " ".join(WORDS[5:25])
    example = Question(1, "q", "w1", context, (text,), context.index(text), text)
    data = task(max_length=16).encode([example], [], ours)
    assert data.cut_answers == 1
    assert (data.labels == 0).all()


# --- the best span


def test_no_span_is_better_than_the_best():
    draw = np.random.default_rng(5)
    for _ in range(50):
        size = int(draw.integers(1, 14))
        logits = draw.normal(size=(size + 4, 2)).astype(np.float32)
        logits[0] = 50  # outside the text, and yet no answer
        offsets = np.full((size + 4, 2), -1, np.int32)
        offsets[3 : 3 + size] = [(3 * i, 3 * i + 2) for i in range(size)]
        longest = int(draw.integers(1, 6))
        every = sorted(
            (
                (float(logits[3 + i, 0] + logits[3 + j, 1]), 3 * i, 3 * j + 2)
                for i in range(size)
                for j in range(i, min(size, i + longest))
            ),
            reverse=True,
        )
        found = sorted(best_spans(logits, offsets, longest, 5), reverse=True)
        assert [one[1:] for one in found] == [one[1:] for one in every[:5]]
        assert [one[0] for one in found] == pytest.approx([one[0] for one in every[:5]])


def test_answers_over_windows(tmp_path):
    ours = text_tokenizer(tmp_path / "base", bert_like())
    context = " ".join(WORDS[:20])
    right = Question(1, "a", "w1", context, ("w15", "w15 w16"), context.index("w15"), "w15")
    nothing = Question(2, "b", "w2", context, ())
    data = task(max_length=16).encode([right, nothing], [], ours)
    windows = [int((data.owner == i).sum()) for i in range(2)]
    assert windows[0] > 1
    outputs = [np.zeros((int(n), 2), np.float32) for n in data.lengths]
    for i, owner in enumerate(data.owner):
        if owner == 0:
            at = np.flatnonzero(data.offsets[i][:, 0] == right.start)
            outputs[i][at] = 5
            outputs[i][0] = 1
        else:
            outputs[i][0] = 4
    keys = {"max_length": 16, "answer_units": "words"}
    open_task, closed = task(**keys, impossible=True), task(**keys)
    first, second = open_task.predictions(data, outputs, [])
    assert (first["predicted"], second["predicted"]) == ("w15", "")
    assert context[first["candidates"][0]["start"] :].startswith("w15")
    assert sum(one["probability"] for one in second["candidates"]) <= 1
    assert second["probability"] > 0.9
    report = open_task.report(data, outputs, [])
    assert (report["f1"], report["exact_match"]) == (1, 1)
    assert report["impossible"] == {"questions": 1, "f1": 1, "exact_match": 1}
    # Asked for an answer it gives one, and is wrong where there is none.
    assert closed.scores(data, outputs, [])["exact_match"] == 0.5


def test_the_loss_is_that_of_the_model(tmp_path):
    ours = text_tokenizer(tmp_path / "base", bert_like())
    context = " ".join(WORDS[:20])
    example = Question(1, "a", "w1", context, ("w15",), context.index("w15"), "w15")
    data = task(max_length=16).encode([example], [], ours)
    torch.manual_seed(0)
    config = preset("bert-tiny", n_layers=1, d_model=32, n_heads=2, d_ff=64, vocab_size=100)
    net = build(config, head="span").eval()
    batch = {k: torch.from_numpy(v) for k, v in data.batch(np.arange(len(data)), 0).items()}
    assert (batch["attention_mask"] == 0).any()
    assert (batch["token_type_ids"] == 1).any()
    with torch.no_grad():
        loss = float(net(**batch).loss)
        outputs = task().infer(net, batch)
    assert task().scores(data, outputs, [])["loss"] == pytest.approx(loss, rel=1e-5)


# --- a whole run


def questions(count, seed):
    """The answer is the word after the one that is asked for."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.sample(WORDS[:12], 8)
        at = draw.randint(0, 6)
        text = " ".join(words)
        start = len(" ".join(words[: at + 1])) + 1
        rows.append(
            {"question": words[at], "context": text, "answers": [answer(words[at + 1], start)]}
        )
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("questions")
    for name, count, seed in (("train", 600, 1), ("dev", 40, 2), ("test", 40, 3)):
        write_jsonl(directory / f"{name}.jsonl", questions(count, seed))
    checkpoint(directory / "base", bert_like(), "bert")
    config = config_file(
        directory,
        task={"kind": "span", "max_length": 16, "max_answer_length": 2},
        epochs=2,
        optim__lr=3e-3,
        schedule__warmup_steps=5,
    )
    assert finetune(config) == 0
    return directory


def test_a_run_trains_and_transformers_says_the_same(run):
    rows = [orjson.loads(line) for line in (run / "run/predictions.jsonl").open()]
    report = read_report(run / "run")
    hits = [row["predicted"] in row["answers"] for row in rows]
    assert report["exact_match"] == pytest.approx(sum(hits) / 40)
    assert report["windows"] == 40
    assert report["loss"] < 2.5  # of about eleven tokens, ln 11 = 2.4, and the marks
    best = run / "run/best"
    net = AutoModelForQuestionAnswering.from_pretrained(best).eval()
    tokenizer = AutoTokenizer.from_pretrained(best)
    tests = [json.loads(line) for line in (run / "test.jsonl").open()]
    for row, test in zip(rows, tests, strict=True):
        batch = tokenizer(test["question"], test["context"], return_tensors="pt",
                          return_token_type_ids=True)  # fmt: skip
        with torch.no_grad():
            output = net(**batch)
        start, end = (x[0] for x in (output.start_logits, output.end_logits))
        spans = [
            (float(start[i] + end[j]), i, j) for i in range(3, 11) for j in range(i, min(i + 2, 11))
        ]
        _, i, j = max(spans)
        assert row["predicted"] == " ".join(test["context"].split()[i - 3 : j - 2])


def test_new_questions_are_answered(run, tmp_path, capsys):
    context = "w1 w2 w3 w4 w5 w6 w7 w8"
    nested = {"data": [{"paragraphs": [{"context": context, "qas": [
        {"id": "x", "question": "w3"}]}]}]}  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(nested))
    assert main(["predict", str(run / "run"), str(tmp_path / "a.json")]) == 0
    (row,) = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["id"] == "x"
    assert row["predicted"] in context
    assert "answers" not in row
    assert row["candidates"][0]["text"] == row["predicted"]
