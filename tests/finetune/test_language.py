"""Pretraining continued on a domain: what is read, cut, hidden, learned, and found again."""

import gzip

import numpy as np
import orjson
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from finetune.__main__ import main
from finetune.devices import to_device
from finetune.tasks import task_of
from finetune.tasks.config import TaskKeys
from finetune.tokenizer import TextTokenizer
from model import load_pretrained, save_pretrained
from model.hf import read_config
from runtime.errors import UserError
from tests.finetune.toys import (
    END,
    WORDS,
    animal_texts,
    checkpoint,
    config_file,
    finetune,
    read_report,
    records,
    word_tokenizer,
    write_jsonl,
)

CPU = torch.device("cpu")
LONG = " ".join(WORDS * 3)  # 90 words


def masked_tokenizer():
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens(["[MASK]"])
    return tokenizer


def encoded(directory, texts, max_length=16, **keys):
    task = task_of(TaskKeys(kind="language", **keys))
    path = write_jsonl(directory.parent / "texts.jsonl", [{"text": text} for text in texts])
    tokenizer = TextTokenizer(directory, read_config(directory), max_length)
    return task, tokenizer, task.encode(task.read(path).examples, [], tokenizer)


def test_paragraphs_of_a_text_file_and_records(tmp_path):
    task = task_of(TaskKeys(kind="language"))
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("\ufeff\n\none\ntwo \n  \n\nthree\r\n".encode()))
    found = task.read(path)
    assert [(e.line, e.text) for e in found.examples] == [(3, "one\ntwo"), (7, "three")]
    rows = [{"text": "a"}, {"text": " "}, {"body": "b"}]
    found = task.read(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [problem.rpartition("jsonl:")[2].split(":")[0] for problem in found.problems] == [
        "2",
        "3",
    ]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(Exception, match="not UTF-8 text"):
        task.read(tmp_path / "b.txt")


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_no_token_of_a_text_is_lost(tmp_path, family):
    base = checkpoint(tmp_path / "base", masked_tokenizer(), family=family)
    _, tokenizer, data = encoded(base, [LONG, "w3", LONG + " w1"])
    assert data.lengths.max() <= 16
    ids = [tokenizer.encode_part(text)[0] for text in (LONG, "w3", LONG + " w1")]
    end = tokenizer.special_id(END)
    for number, wanted in enumerate(ids):
        rows = [data.row(i).tolist() for i in np.flatnonzero(data.owner == number)]
        joined = [token for row in rows for token in row]
        # A causal model learns where a text ends, and never that it ends where it was cut.
        assert joined == (wanted if family == "bert" else [*wanted, end])


def test_as_many_are_hidden_as_are_counted_whoever_asks(tmp_path):
    base = checkpoint(tmp_path / "base", masked_tokenizer(), family="bert")
    _, tokenizer, data = encoded(base, [LONG, "w3", "w1 w2 w3"], mask_fraction=0.3)
    every = np.arange(len(data))
    seen = []
    for draw in (0, 1, 2, 1):
        batch = data.training_batch(every, tokenizer.pad_id, draw)
        assert (batch["targets"] != -100).sum() == len(batch["rows"]) == data.counts(every)
        is_hidden = batch["targets"] != -100
        original = np.concatenate([data.row(i) for i in every])[None]
        assert (batch["targets"][is_hidden] == original[is_hidden]).all()
        assert (batch["input_ids"][~is_hidden] == original[~is_hidden]).all()
        seen.append(batch)
    assert (seen[1]["input_ids"] == seen[3]["input_ids"]).all()
    assert (seen[1]["input_ids"] != seen[2]["input_ids"]).any()
    assert (seen[0]["targets"] == data.batch(every, tokenizer.pad_id)["targets"]).all()
    # Each row by itself, in whichever batch.
    alone = data.training_batch(every[2:3], tokenizer.pad_id, 1)
    start, end = data.starts[2:4]
    assert (alone["input_ids"][0] == seen[1]["input_ids"][0, start:end]).all()


def test_what_hidden_tokens_become(tmp_path):
    base = checkpoint(tmp_path / "base", masked_tokenizer(), family="bert")
    _, tokenizer, data = encoded(base, [LONG] * 60, max_length=64, mask_fraction=0.3)
    batch = data.training_batch(np.arange(len(data)), tokenizer.pad_id, 5)
    is_hidden = batch["targets"] != -100
    now, before = batch["input_ids"][is_hidden], batch["targets"][is_hidden]
    assert is_hidden.mean() == pytest.approx(0.3, abs=0.01)
    assert (now == tokenizer.mask_id).mean() == pytest.approx(0.8, abs=0.03)
    assert (now == before).mean() == pytest.approx(0.1, abs=0.03)
    assert not np.isin(now[now != tokenizer.mask_id], list(tokenizer.special_ids)).any()


@pytest.mark.parametrize("family", ["llama", "bert", "modernbert"])
def test_the_loss_is_that_of_transformers(tmp_path, family):
    base = checkpoint(tmp_path / "base", masked_tokenizer(), family=family)
    task, tokenizer, data = encoded(base, [LONG, "w3 w4", "w1 w2 w3"])
    net = load_pretrained(base, head=task.head_of(read_config(base))).float().eval()
    every = np.arange(len(data))
    batch = to_device(data.batch(every, tokenizer.pad_id), CPU)
    with torch.inference_mode():
        ours = net(**batch).loss
        scores = task.scores(data, task.infer(net, batch), [])
    of = AutoModelForCausalLM if family == "llama" else AutoModelForMaskedLM
    theirs = of.from_pretrained(base).eval()
    total = 0.0
    for index in every:
        low, high = data.starts[index : index + 2]
        row = batch["input_ids"][:, low:high]
        with torch.no_grad():
            logits = theirs(row).logits[0]
        targets = batch["targets"][0, low:high]
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert float(ours) == pytest.approx(total / data.counts(every), rel=1e-5)
    assert scores["loss"] == pytest.approx(float(ours), rel=1e-6)


def run_config(directory, family="bert", **changes):
    if not (directory / "base").exists():
        checkpoint(directory / "base", masked_tokenizer(), family=family)
    return config_file(directory, **{"task__kind": "language", "task__max_length": 16, **changes})


def test_a_run_learns_and_its_model_is_fine_tuned(tmp_path, capsys):
    for name, count, seed in (("train", 200, 1), ("dev", 20, 2), ("test", 20, 3)):
        rows = [{"text": " ".join(WORDS[i % 6] for i in range(s, s + 14))} for s in range(count)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows[seed:])
    path = run_config(
        tmp_path, epochs=30, optim__lr=5e-3, task__mask_fraction=0.2, batch__micro_batch_size=8
    )
    assert finetune(path) == 0
    losses = records(tmp_path / "run", "valid_loss")
    assert losses[-1] < losses[0] / 2  # each word is told by its neighbours
    report = read_report(tmp_path / "run")
    assert report["perplexity"] == pytest.approx(np.exp(report["loss"]), rel=1e-6)
    assert len((tmp_path / "run/predictions.jsonl").read_bytes().splitlines()) == 17
    page = (tmp_path / "run/report.md").read_text()
    assert "the texts of the greatest loss" in page
    assert "| index | text | loss |" in page
    capsys.readouterr()
    source = write_jsonl(tmp_path / "ask.jsonl", [{"text": "w1 w2 w3 w4"}])
    assert main(["predict", str(tmp_path / "run"), str(source), "--device", "cpu"]) == 0
    assert orjson.loads(capsys.readouterr().out)["tokens"] == 1
    for name in ("train", "dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", animal_texts(20, 4))
    again = config_file(
        tmp_path, model=str(tmp_path / "run"), run__dir=str(tmp_path / "next"), epochs=1
    )
    assert finetune(again) == 0


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_resumed_run_hides_what_the_uninterrupted_one_does(tmp_path, family):
    changes = {"epochs": None, "schedule__kind": "constant"}
    whole = run_config(tmp_path, family, steps=6, run__dir=str(tmp_path / "whole"), **changes)
    assert finetune(whole) == 0
    for steps in (3, 6):
        assert finetune(run_config(tmp_path, family, steps=steps, **changes)) == 0
    losses = [records(tmp_path / name, "loss") for name in ("whole", "run")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_model_that_can_hide_nothing_is_refused(tmp_path, capsys):
    checkpoint(tmp_path / "base", word_tokenizer(), family="bert")
    assert finetune(run_config(tmp_path)) == 2
    assert "names no mask_token, which stands for hidden tokens" in capsys.readouterr().err


def test_scores_do_not_depend_on_the_batch(tmp_path, capsys):
    assert finetune(run_config(tmp_path, epochs=None, steps=1)) == 0
    wanted = (tmp_path / "run/predictions.jsonl").read_bytes().splitlines()
    for size in ("1", "16"):
        words = ["predict", str(tmp_path / "run"), str(tmp_path / "test.jsonl"), "--device", "cpu"]
        capsys.readouterr()
        assert main([*words, "--batch-size", size]) == 0
        for line, expected in zip(capsys.readouterr().out.splitlines(), wanted, strict=True):
            told = orjson.loads(expected)["predicted"]
            assert orjson.loads(line)["predicted"] == pytest.approx(told, abs=1e-5)


def test_a_classifier_is_no_language_model(tmp_path, capsys):
    base = checkpoint(tmp_path / "base", masked_tokenizer(), family="bert")
    net = load_pretrained(base, head="sequence", num_labels=2)
    save_pretrained(net, tmp_path / "classifier", tokenizer_dir=base)
    assert finetune(run_config(tmp_path, model=str(tmp_path / "classifier"))) == 2
    assert "which classifiers and bare encoders lack" in capsys.readouterr().err


def test_auto_sees_that_a_tied_head_cannot_learn_alone(tmp_path, capsys):
    checkpoint(tmp_path / "base", family="gpt2", tie_embeddings=True)
    few = write_jsonl(tmp_path / "few.jsonl", animal_texts(10))
    path = run_config(tmp_path, transfer__strategy="auto", epochs=1)
    assert finetune(path, f"data.train={few}") == 0
    assert "so head" not in capsys.readouterr().out


def test_a_file_of_another_kind_is_told_what_is_read(tmp_path):
    task = task_of(TaskKeys(kind="language"))
    with pytest.raises(UserError, match=r"must end in \.txt, \.jsonl"):
        task.read(tmp_path / "a.md")


def test_one_of_several_tasks(tmp_path, capsys):
    """Its documents are counted by their rows, once they are cut: 12 of them here, not one."""
    base = checkpoint(tmp_path / "base", masked_tokenizer(), family="bert")
    write_jsonl(tmp_path / "cls.jsonl", animal_texts(32))
    for name in ("lm", "dev"):
        (tmp_path / f"{name}.txt").write_text(" ".join(WORDS * 6))
    of_texts = {"train": str(tmp_path / "lm.txt"), "dev": str(tmp_path / "dev.txt")}
    tasks = [
        {"name": "lm", "task": {"kind": "language", "max_length": 16}, "data": of_texts},
        {"name": "cls", "task": {"max_length": 16}, "data": {"train": str(tmp_path / "cls.jsonl")}},
    ]
    values = {"model": str(base), "tasks": tasks, "epochs": 2, "log": {"tensorboard": False}}
    values |= {"batch": {"global_batch_size": 4}, "run": {"dir": str(tmp_path / "m")}}
    path = tmp_path / "several.yaml"
    path.write_text(yaml.safe_dump(values | {"schedule": {"warmup_steps": 20}}))
    assert main(["multitask", str(path)]) == 0
    assert "22 steps" in capsys.readouterr().out
    assert read_report(tmp_path / "m/lm")["perplexity"] > 1
    path.write_text(yaml.safe_dump(values | {"schedule": {"warmup_steps": 22}}))
    assert main(["multitask", str(path), f"run.dir={tmp_path / 'n'}"]) == 2
    assert "22 is not less than the run's 22 steps" in capsys.readouterr().err


def test_a_model_that_counts_positions_from_its_padding_keeps_it(tmp_path, capsys):
    checkpoint(tmp_path / "base", masked_tokenizer(), family="roberta", pad_token_id=1)
    assert finetune(run_config(tmp_path, epochs=None, steps=1)) == 2
    assert "the model counts positions from pad_token_id 1" in capsys.readouterr().err
    checkpoint(tmp_path / "good", masked_tokenizer(), family="roberta", pad_token_id=0)
    path = run_config(tmp_path, epochs=None, steps=1, model=str(tmp_path / "good"))
    assert finetune(path) == 0
