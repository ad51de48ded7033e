"""Instruction tuning: what is learned, in which format, and that packing changes nothing."""

import json

import numpy as np
import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.__main__ import main
from finetune.devices import to_device
from finetune.generation import continued
from finetune.models import open_model
from finetune.tasks import task_of
from finetune.tasks.base import Problem
from finetune.tasks.config import TaskKeys
from finetune.tokenizer import TextTokenizer
from model import build, load_pretrained, preset
from model.hf import read_config
from runtime.errors import UserError
from tests.finetune.toys import (
    END,
    byte_tokenizer,
    checkpoint,
    config_file,
    finetune,
    read_report,
    records,
    write_jsonl,
)

CHATS = [
    [("user", "Where is it?"), ("assistant", "Über dort – 在那里.")],
    [
        ("system", "Be brief."),
        ("user", "  Is it\n\nblue? "),
        ("assistant", "No.\n"),
        ("user", "Red?"),
        ("assistant", "Yes, red"),
    ],
]


def chat_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


def messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


def task(**keys):
    return task_of(TaskKeys(kind="instruct", **keys))


def chat_model(directory, **shape):
    tokenizer = chat_tokenizer()
    ends = [tokenizer.token_to_id(END), tokenizer.token_to_id("<|im_end|>")]
    return checkpoint(directory, tokenizer, max_seq_len=512, eos_token_id=ends, **shape)


def encoded(directory, path, max_length=512, **keys):
    found = task(**keys)
    tokenizer = TextTokenizer(directory, read_config(directory), max_length)
    reading = found.read(path)
    assert not reading.problems
    return found, tokenizer, found.encode(reading.examples, [], tokenizer)


# --- formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["instruction", "dialogue", "chatml"])
def test_the_ids_and_what_is_learned_are_those_of_transformers(tmp_path, template):
    base = chat_model(tmp_path / "base")
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": messages(turns)} for turns in CHATS])
    found, tokenizer, data = encoded(base, path, template=template)
    tokenizer.write_settings(base, found.tokenizer_settings(tokenizer))
    theirs = AutoTokenizer.from_pretrained(base)
    for number, turns in enumerate(CHATS):
        wanted = theirs.apply_chat_template(
            messages(turns), return_dict=True, return_assistant_tokens_mask=True
        )
        ids, labels = data.row(number), data.labels_of(number)
        assert ids.tolist() == wanted["input_ids"]
        learned = np.array(wanted["assistant_masks"], dtype=bool)
        assert learned.any()
        assert not learned.all()
        assert (labels != -100).tolist() == learned.tolist()
        assert labels[learned].tolist() == ids[learned].tolist()
    # And of a question that is to be answered.
    ((question,),) = [
        [e for e in found.stream(path, labelled=False) if e.line == number] for number in (2,)
    ]
    asked = found.encode([question], [], tokenizer)
    wanted = theirs.apply_chat_template(
        messages(CHATS[1][:-1]), add_generation_prompt=True, return_dict=True
    )
    assert asked.row(0).tolist() == wanted["input_ids"]


def test_a_known_template_of_the_checkpoint_is_kept_and_another_is_not_run(tmp_path):
    base = chat_model(tmp_path / "base")
    tokenizer = TextTokenizer(base, read_config(base))
    assert task().chat(tokenizer).name == "chatml"  # its tokens are there
    dialogue = task(template="dialogue")
    tokenizer.write_settings(base, dialogue.tokenizer_settings(tokenizer))
    again = TextTokenizer(base, read_config(base))
    assert task().chat(again) == dialogue.chat(tokenizer)
    hostile = {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}
    tokenizer.write_settings(base, hostile)
    assert task().chat(TextTokenizer(base, read_config(base))).name == "chatml"


def test_the_format_of_the_checkpoint_does_not_hide_that_of_the_run(tmp_path):
    base = chat_model(tmp_path / "base")
    (base / "chat_template.jinja").write_text("something else")
    tokenizer = TextTokenizer(base, read_config(base))
    tokenizer.write_settings(base, task().tokenizer_settings(tokenizer))
    ids = AutoTokenizer.from_pretrained(base).apply_chat_template(
        messages([("user", "Hi")]), tokenize=False
    )
    assert ids == "<|im_start|>user\nHi<|im_end|>\n"


def test_what_looks_like_a_special_token_in_a_text_is_text(tmp_path):
    base = chat_model(tmp_path / "base")
    rows = [{"prompt": "a", "response": f"b {END} c <|im_end|>"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    _, tokenizer, data = encoded(base, path, template="instruction")
    assert (data.tokens == tokenizer.special_id(END)).sum() == 1
    assert (data.tokens == tokenizer.special_id("<|im_end|>")).sum() == 0


def test_chatml_needs_its_tokens(tmp_path):
    base = checkpoint(tmp_path / "base", byte_tokenizer())
    tokenizer = TextTokenizer(base, read_config(base))
    assert task().chat(tokenizer).name == "instruction"
    with pytest.raises(UserError, match="chatml needs the special tokens"):
        task(template="chatml").chat(tokenizer)


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"messages": messages(CHATS[0])},
        {
            "conversations": [
                {"from": "human", "value": CHATS[0][0][1]},
                {"from": "gpt", "value": CHATS[0][1][1]},
            ]
        },
        {"instruction": CHATS[0][0][1], "input": "", "output": CHATS[0][1][1]},
        {"prompt": CHATS[0][0][1], "response": CHATS[0][1][1]},
    ],
)
def test_every_layout_says_the_same(tmp_path, row):
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    (found,) = task().read(path).examples
    assert [tuple(turn) for turn in found.turns] == CHATS[0]
    assert found.text == "Where is it?"
    assert found.answer == CHATS[0][1][1]


def test_the_input_of_an_instruction_and_the_system_come_before(tmp_path):
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3", "system": "Count."}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    (found,) = task(system="Be good.").read(path).examples
    wanted = [("system", "Count."), ("user", "Add.\n\n1 2"), ("assistant", "3")]
    assert [tuple(turn) for turn in found.turns] == wanted
    write_jsonl(path, [{"q": "a", "a": "b"}])
    (found,) = task(prompt_key="q", response_key="a", system="Be good.").read(path).examples
    wanted = [("system", "Be good."), ("user", "a"), ("assistant", "b")]
    assert [tuple(turn) for turn in found.turns] == wanted


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"question": "a", "answer": "b"}, "task.prompt_key"),
        ({"prompt": "a"}, "no 'response'"),
        ({"prompt": "a", "response": 3}, "'response' must be text, got int"),
        ({"prompt": "a", "response": " "}, "turn 2, by the assistant, is empty"),
        ({"messages": []}, "must be a list of turns"),
        ({"messages": [{"role": "user"}]}, "turn 1 of 'messages' must be an object"),
        ({"messages": messages([("tool", "x")])}, "is by 'tool'; expected one of system, user"),
        ({"messages": messages([("user", "a"), ("user", "b")])}, "turn 2 is by the user"),
        ({"messages": messages([("user", "a")])}, "ends without an answer"),
        ({"messages": messages([("system", "a")])}, "nobody but the system"),
        (
            {"messages": messages([("user", "a"), ("system", "b"), ("assistant", "c")])},
            "turn 2 is by the system, expected the assistant",
        ),
    ],
)
def test_what_is_wrong_with_a_conversation_is_said_with_its_line(tmp_path, row, text):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b"}, row])
    (problem,) = task().read(path).problems
    assert problem.startswith(f"{path}:2: ")
    assert text in problem


def test_a_question_alone_is_enough_to_predict_on(tmp_path):
    rows = [{"prompt": "a"}, {"messages": messages(CHATS[1])}, {"messages": messages(CHATS[0][:1])}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    found = list(task().stream(path, labelled=False))
    assert not any(isinstance(f, Problem) for f in found)
    assert [f.turns[-1].role for f in found] == ["user"] * 3
    assert [len(f.turns) for f in found] == [1, 4, 1]


# --- what is learned -------------------------------------------------------------------------


def sums(count, seed=0):
    draw = np.random.default_rng(seed)
    return [{"prompt": f"{a}+1", "response": str(a + 1)} for a in draw.integers(0, 8, count)]


def test_the_end_is_learned_though_it_pads_and_not_where_an_answer_was_cut(tmp_path):
    base = checkpoint(tmp_path / "base", byte_tokenizer())
    rows = [{"prompt": "a", "response": "bc"}, {"prompt": "a", "response": "b" * 40}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    _, tokenizer, data = encoded(base, path, max_length=50)
    end = tokenizer.special_id(END)
    assert tokenizer.pad_id == end
    whole, cut = (data.labels_of(i) for i in (0, 1))
    assert tokenizer.decode(whole[whole != -100][:-1]) == "bc"
    assert whole[-1] == end
    assert len(cut) == 50
    assert end not in cut
    assert data.truncated == 1
    batch = data.batch(np.array([0, 1]), tokenizer.pad_id)
    assert (batch["targets"] == end).sum() == 1
    assert data.counts(np.array([0])) == 3


def test_packed_rows_do_not_see_each_other(tmp_path):
    base = chat_model(tmp_path / "base", dropout=0.0)
    path = write_jsonl(tmp_path / "a.jsonl", [*sums(5), {"messages": messages(CHATS[1])}])
    _found, tokenizer, data = encoded(base, path)
    net = load_pretrained(base, head="causal_lm").float().eval()
    batch = to_device(data.batch(np.array([5, 0, 3]), tokenizer.pad_id), torch.device("cpu"))
    assert batch["input_ids"].shape == (1, int(data.lengths[[5, 0, 3]].sum()))
    packed = net(batch["input_ids"], cu_seqlens=batch["cu_seqlens"]).logits[0]
    theirs = AutoModelForCausalLM.from_pretrained(base).eval()
    at = 0
    for index in (5, 0, 3):
        ids = torch.tensor(data.row(index)[None].astype(np.int64))
        alone = theirs(ids).logits[0]
        torch.testing.assert_close(packed[at : at + ids.shape[1]], alone, atol=2e-5, rtol=0)
        at += ids.shape[1]


@pytest.mark.parametrize("packing", [True, False])
def test_the_scores_are_those_of_transformers(tmp_path, packing):
    base = chat_model(tmp_path / "base")
    path = write_jsonl(tmp_path / "a.jsonl", [*sums(7), {"messages": messages(CHATS[1])}])
    found, tokenizer, data = encoded(base, path, packing=packing)
    net = load_pretrained(base, head="causal_lm").float().eval()
    indices = np.arange(8)
    batch = to_device(data.batch(indices, tokenizer.pad_id), torch.device("cpu"))
    with torch.inference_mode():
        outputs = found.infer(net, batch)
        mean = net(**batch).loss
    theirs = AutoModelForCausalLM.from_pretrained(base).eval()
    total, count, hits = 0.0, 0, 0
    for index in indices:
        ids, labels = (
            torch.tensor(x[None].astype(np.int64)) for x in (data.row(index), data.labels_of(index))
        )
        out = theirs(ids, labels=labels)
        n = int((labels != -100).sum())
        best = out.logits[0, :-1].argmax(-1)
        hits += int((best == labels[0, 1:]).sum())
        total, count = total + out.loss.item() * n, count + n
        assert outputs[index][0] == pytest.approx(out.loss.item() * n, rel=1e-5)
    scores = found.scores(data, outputs, [])
    assert scores["loss"] == pytest.approx(total / count, rel=1e-6)
    assert mean.item() == pytest.approx(total / count, rel=1e-6)
    assert scores["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-5)
    assert scores["token_accuracy"] == pytest.approx(hits / count)
    assert data.counts(indices) == count


# --- runs ------------------------------------------------------------------------------------


def run_config(directory, **changes):
    for name, count, seed in (("train", 100, 1), ("dev", 20, 2), ("test", 20, 3)):
        write_jsonl(directory / f"{name}.jsonl", sums(count, seed))
    if not (directory / "base").exists():
        checkpoint(directory / "base", byte_tokenizer())
    values = {"task__kind": "instruct", "task__max_length": 64, "batch__global_batch_size": 10}
    return config_file(directory, **{**values, **changes})


def test_a_run_learns_to_answer_and_to_stop(tmp_path, capsys):
    path = run_config(
        tmp_path, epochs=None, steps=600, evaluate__every_steps=200, optim__lr=4e-3,
        task__template="dialogue", schedule__warmup_steps=5,
    )  # fmt: skip
    assert finetune(path) == 0
    report = read_report(tmp_path / "run")
    assert report["token_accuracy"] == 1
    assert report["loss"] < 0.05
    assert report["predicted_tokens"] == 40
    assert report["without_answer"] == 0
    lines = (tmp_path / "run" / "predictions.jsonl").read_bytes().splitlines()
    assert all(orjson.loads(line)["tokens"] == 2 for line in lines)
    capsys.readouterr()
    questions = [{"prompt": row["prompt"]} for row in sums(10, seed=9)]
    source = write_jsonl(tmp_path / "questions.jsonl", questions)
    assert main(["predict", str(tmp_path / "run"), str(source), "--device", "cpu"]) == 0
    said = [json.loads(line)["predicted"] for line in capsys.readouterr().out.splitlines()]
    assert said == [row["response"] for row in sums(10, seed=9)]  # and nothing after it
    # transformers says the same, from the directory alone.
    theirs = AutoTokenizer.from_pretrained(tmp_path / "run" / "best")
    ids = theirs.apply_chat_template(
        messages([("user", questions[0]["prompt"])]),
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "best")
    out = net.generate(**ids, max_new_tokens=20, do_sample=False)
    answer = out[0, ids["input_ids"].shape[1] :]
    assert answer.tolist()[-1] == theirs.eos_token_id
    assert theirs.decode(answer, skip_special_tokens=True) == said[0]


def test_packing_changes_no_step(tmp_path):
    losses = []
    for packing in (True, False):
        path = run_config(
            tmp_path, task__packing=packing, run__dir=str(tmp_path / str(packing)), epochs=None,
            steps=4, batch__micro_batch_size=5,
        )  # fmt: skip
        assert finetune(path) == 0
        losses.append(records(tmp_path / str(packing), "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_a_step_without_any_answer_left_is_no_error(tmp_path):
    path = run_config(tmp_path, task__max_length=20, epochs=None, steps=2)
    assert finetune(path) == 0
    assert read_report(tmp_path / "run")["without_answer"] == 20
    assert records(tmp_path / "run", "loss") == [0.0, 0.0]


def test_a_model_that_reads_both_sides_is_refused(tmp_path, capsys):
    checkpoint(tmp_path / "base", byte_tokenizer(), family="bert")
    assert finetune(run_config(tmp_path)) == 2
    assert "a bert model has no head 'causal_lm', which task.kind: instruct needs" in (
        capsys.readouterr().err
    )


def test_open_model_gives_the_format_back(tmp_path):
    assert finetune(run_config(tmp_path, epochs=None, steps=1, task__template="dialogue")) == 0
    _, found, labels, tokenizer = open_model(tmp_path / "run" / "best")
    assert labels == []
    assert found.chat(tokenizer).name == "dialogue"


def test_an_answer_does_not_depend_on_its_neighbours(tmp_path):
    shape = {"n_layers": 1, "d_model": 16, "n_heads": 2, "vocab_size": 30, "max_seq_len": 16}
    net = build(preset("gpt2-tiny", **shape, eos_token_id=None), "causal_lm").eval()
    short, long = np.arange(1, 4, dtype=np.int32), np.arange(1, 16, dtype=np.int32)
    (alone,) = continued(net, [short], 8, None)
    together, rest = continued(net, [short, long], 8, None)
    assert together == alone
    assert (len(alone), len(rest)) == (8, 2)


def test_a_question_leaves_room_for_its_answer(tmp_path):
    base = checkpoint(tmp_path / "base", byte_tokenizer())  # 64 positions
    path, own = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x" * 200}]), task(max_new_tokens=20)
    tokenizer = TextTokenizer(base, read_config(base), 64)
    data = own.encode(list(own.stream(path, labelled=False)), [], tokenizer)
    assert data.lengths.tolist() == [44]
