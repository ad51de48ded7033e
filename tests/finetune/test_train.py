"""Whole runs of the toy: what they learn, and what survives interruptions."""

import json
import shutil

import orjson
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune import metrics
from finetune import session as session_module
from finetune.__main__ import main
from runtime.checkpoint import list_checkpoints, verify
from runtime.signals import StopRequest
from tests.finetune.toys import (
    animal_texts,
    byte_tokenizer,
    checkpoint,
    config_file,
    finetune,
    read_report,
    records,
    word_tokenizer,
    write_jsonl,
)

SCORES = metrics.scores
LEARN = {"epochs": 10, "optim__lr": 1e-2, "schedule__warmup_steps": 5}


def weights(run_dir, name="best"):
    return load_file(run_dir / name / "model.safetensors")


def same(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    return all((a[n] - b[n]).abs().max() <= tolerance for n in a)


def predictions(run_dir):
    return [orjson.loads(x) for x in (run_dir / "predictions.jsonl").read_bytes().splitlines()]


def stop_after(monkeypatch, steps):
    """Ask the run to stop in its n-th step of this stretch, as a signal would."""
    left = iter(range(steps, -1000, -1))
    monkeypatch.setattr(StopRequest, "check", lambda self: next(left) <= 1)


def test_a_learnable_task_is_learned(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", animal_texts(400, 1, longest=6))
    write_jsonl(tmp_path / "dev.jsonl", animal_texts(60, 2, longest=6))
    write_jsonl(tmp_path / "test.jsonl", animal_texts(60, 3, longest=6))
    assert finetune(config_file(tmp_path, **LEARN)) == 0
    found = read_report(tmp_path / "run")
    assert max(records(tmp_path / "run", "dev_score")) >= 0.95
    assert found["split"] == "test"
    assert found["accuracy"] >= 0.95
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        *("best", "checkpoints", "clock.jsonl", "config.yaml", "health", "metrics.jsonl"),
        *(".lock", "predictions.jsonl", "report.html", "report.json", "report.md", "versions.json"),
    }


def test_report_and_predictions_agree(tmp_path, capsys):
    assert finetune(config_file(tmp_path)) == 0
    found, rows = read_report(tmp_path / "run"), predictions(tmp_path / "run")
    gold = [json.loads(line)["label"] for line in (tmp_path / "test.jsonl").open()]
    assert [row["index"] for row in rows] == list(range(30))
    assert [row["label"] for row in rows] == gold
    hits = sum(row["predicted"] == row["label"] for row in rows)
    assert found["accuracy"] == pytest.approx(hits / 30)
    matrix = found["confusion_matrix"]
    assert sum(matrix[i][i] for i in range(3)) == hits
    assert sum(map(sum, matrix)) == found["examples"] == 30
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == row["probabilities"][row["predicted"]]
        assert row["probability"] == max(row["probabilities"].values())
    printed = capsys.readouterr().out
    assert "macro avg" in printed
    assert "weighted avg" in printed


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["words", "words-with-end", "bytes"])
def test_transformers_predicts_the_same(tmp_path, family, kind):
    make = {"words": word_tokenizer, "bytes": byte_tokenizer}.get(kind)
    tokenizer = make() if make else word_tokenizer(appends_end=True)
    checkpoint(tmp_path / "base", tokenizer, family)
    shape = {"task__max_length": 20, "steps": 6, "epochs": None, "optim__lr": 1e-2}
    assert finetune(config_file(tmp_path, **shape)) == 0
    best = tmp_path / "run" / "best"
    net = AutoModelForSequenceClassification.from_pretrained(best).eval()
    assert net.config.num_labels == 3
    assert net.config.id2label == {0: "cat", 1: "cow", 2: "dog"}
    assert net.config.label2id == {"cat": 0, "cow": 1, "dog": 2}
    assert net.config.pad_token_id == 0 or kind == "bytes"
    texts = [json.loads(line)["text"] for line in (tmp_path / "test.jsonl").open()]
    batch = AutoTokenizer.from_pretrained(best)(
        texts, truncation=True, padding=True, return_tensors="pt"
    )
    assert (batch["attention_mask"] == 0).any()  # there is padding
    with torch.no_grad():
        theirs = net(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    from model import load_pretrained

    with torch.no_grad():
        ours = load_pretrained(best, head="sequence")(
            batch["input_ids"], batch["attention_mask"]
        ).logits
    assert (ours - theirs).abs().max() <= 1e-5
    for row, probabilities in zip(predictions(tmp_path / "run"), theirs.softmax(-1), strict=True):
        for name, i in net.config.label2id.items():
            assert row["probabilities"][name] == pytest.approx(float(probabilities[i]), abs=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 6, 9])  # 6: the end of an epoch, 12 steps in all
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, steps):
    config_file(tmp_path, run__dir="unused", model=str(tmp_path / "base"))
    shape = {"batch__micro_batch_size": 5, "batch__global_batch_size": 15}
    dropout = json.loads((tmp_path / "base" / "config.json").read_text())
    dropout["attention_dropout"] = 0.2  # drawn anew in each step, so its seed must survive
    (tmp_path / "base" / "config.json").write_text(json.dumps(dropout))
    straight, broken = str(tmp_path / "straight"), str(tmp_path / "broken")
    assert finetune(config_file(tmp_path, run__dir=straight, **shape)) == 0
    path = config_file(tmp_path, run__dir=broken, **shape)
    with monkeypatch.context() as patched:
        stop_after(patched, steps)
        assert finetune(path) == 75
    (info,) = list_checkpoints(tmp_path / "broken" / "checkpoints")
    assert info.step == steps
    assert verify(info.path) == []
    assert finetune(path) == 0
    a, b = tmp_path / "straight", tmp_path / "broken"
    for name in ("best", "checkpoints/step_00000012"):
        assert same(weights(a, name), weights(b, name))
    for key in ("loss", "dev_score", "valid_loss", "lr", "grad_norm"):
        assert records(a, key) == records(b, key), key
    assert [r["step"] for r in records(a)] == [r["step"] for r in records(b)]
    assert records(a)[-1]["tokens_seen"] == records(b)[-1]["tokens_seen"]
    assert (a / "predictions.jsonl").read_bytes() == (b / "predictions.jsonl").read_bytes()


def test_a_finished_run_says_so(tmp_path, capsys):
    path = config_file(tmp_path)
    assert finetune(path) == 0
    before = (tmp_path / "run" / "report.json").stat().st_mtime_ns
    capsys.readouterr()
    assert finetune(path) == 0
    assert "already finished" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.json").stat().st_mtime_ns == before
    (tmp_path / "run" / "report.json").unlink()  # a crash after the last step
    assert finetune(path) == 0
    assert (tmp_path / "run" / "report.json").is_file()


def test_another_test_set_is_scored_anew(tmp_path):
    path = config_file(tmp_path)
    assert finetune(path) == 0
    before = read_report(tmp_path / "run")
    texts = (tmp_path / "test.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "test.jsonl").write_bytes(b"".join(texts[: len(texts) // 2]))
    assert finetune(path) == 0
    assert read_report(tmp_path / "run")["examples"] == before["examples"] // 2


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path):
    assert finetune(config_file(tmp_path, epochs=1)) == 0
    assert finetune(config_file(tmp_path, epochs=3)) == 0
    assert [r["step"] for r in records(tmp_path / "run") if "loss" in r] == list(range(1, 19))


def scripted(monkeypatch, values):
    """Evaluations of which the score is written in advance."""
    left = iter(values)
    monkeypatch.setattr(
        metrics,
        "scores",
        lambda gold, predicted: {**SCORES(gold, predicted), "accuracy": next(left)},
    )


def test_the_best_is_kept_though_later_epochs_are_worse(tmp_path, monkeypatch):
    scripted(monkeypatch, [0.5, 0.9, 0.6, 0.9])
    assert finetune(config_file(tmp_path, epochs=4, checkpoint__keep_last=2)) == 0
    run_dir = tmp_path / "run"
    score = {"step": 12, "metric": "accuracy", "value": 0.9, "dev_score": 0.9}
    assert read_report(run_dir)["best"] == score
    last = weights(run_dir, "checkpoints/step_00000024")
    assert not same(weights(run_dir), last)
    # A run that ends at the best step has the same model: 2 epochs of the same schedule.
    constant = {"schedule__kind": "constant", "epochs": 2}
    scripted(monkeypatch, [0.5, 0.9])
    assert finetune(config_file(tmp_path, run__dir=str(tmp_path / "b"), **constant)) == 0
    scripted(monkeypatch, [0.5, 0.9, 0.6, 0.8])
    four = {**constant, "epochs": 4, "run__dir": str(tmp_path / "c")}
    assert finetune(config_file(tmp_path, **four)) == 0
    assert same(weights(tmp_path / "b"), weights(tmp_path / "c"))


def test_patience_ends_the_run(tmp_path, monkeypatch):
    scripted(monkeypatch, [0.5, 0.7, 0.6, 0.7, 0.9])
    path = config_file(tmp_path, epochs=9, patience=2)
    assert finetune(path) == 0
    assert records(tmp_path / "run", "dev_score") == [0.5, 0.7, 0.6, 0.7]
    assert read_report(tmp_path / "run")["best"]["step"] == 12
    assert finetune(path) == 0  # already finished: no fifth score is asked for
    assert len(records(tmp_path / "run", "dev_score")) == 4


def test_patience_survives_an_interruption(tmp_path, monkeypatch):
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.9])
    path = config_file(tmp_path, epochs=9, patience=2)
    with monkeypatch.context() as patched:
        stop_after(patched, 13)  # after the second evaluation
        assert finetune(path) == 75
    assert finetune(path) == 0
    assert records(tmp_path / "run", "dev_score") == [0.5, 0.4, 0.3]


class Crash(BaseException):
    """Ends a run as a killed process ends: nothing catches it."""


def test_a_better_model_published_before_a_crash_is_not_replaced(tmp_path, monkeypatch):
    """The steps after the last checkpoint are trained again, perhaps not to the same score."""
    path = config_file(tmp_path, epochs=3)
    scripted(monkeypatch, [0.5, 0.9])
    saved = []
    real = session_module.Session.save

    def save_once(self):
        if saved:
            raise Crash
        saved.append(self.step)
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(session_module.Session, "save", save_once)
        with pytest.raises(Crash):
            finetune(path, "checkpoint.every_steps=8")
    assert saved == [8]
    scripted(monkeypatch, [0.8, 0.7])
    assert finetune(path, "checkpoint.every_steps=8") == 0
    assert read_report(tmp_path / "run")["best"]["dev_score"] == 0.9


def test_a_best_model_that_was_being_replaced_is_brought_back(tmp_path):
    path = config_file(tmp_path)
    assert finetune(path) == 0
    best = tmp_path / "run" / "best"
    before = read_report(tmp_path / "run")
    best.rename(best.with_name(".best.old"))  # a crash between two renames
    (tmp_path / "run" / "report.json").unlink()
    assert finetune(path) == 0
    assert read_report(tmp_path / "run") == before
    shutil.rmtree(best)
    (tmp_path / "run" / "report.json").unlink()
    assert finetune(path) == 1  # one line, not a trace


def test_macro_f1_can_choose_the_best(tmp_path):
    assert finetune(config_file(tmp_path, evaluate__metric="macro_f1")) == 0
    rows = [r for r in records(tmp_path / "run") if "dev_score" in r]
    assert [r["dev_score"] for r in rows] == [r["dev_macro_f1"] for r in rows]
    best = read_report(tmp_path / "run")["best"]
    assert best["dev_score"] == max(r["dev_macro_f1"] for r in rows)


def test_evaluation_every_so_many_steps(tmp_path):
    assert finetune(config_file(tmp_path, evaluate__every_steps=5)) == 0
    steps = [r["step"] for r in records(tmp_path / "run") if "dev_score" in r]
    assert steps == [5, 10, 12]


def test_other_settings_do_not_take_up_a_run(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        assert finetune(config_file(tmp_path)) == 75
    assert finetune(config_file(tmp_path, optim__lr=2e-3)) == 2
    assert "optim.lr: 0.002, but the run" in capsys.readouterr().err
    rows = animal_texts(90, 1)
    rows[5]["text"] += " w3"
    write_jsonl(tmp_path / "train.jsonl", rows)
    assert finetune(config_file(tmp_path)) == 2
    assert "data.train: its texts or labels are not those" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over(tmp_path, monkeypatch, capsys):
    path = config_file(tmp_path, checkpoint__every_steps=4)
    with monkeypatch.context() as patched:
        stop_after(patched, 10)
        assert finetune(path) == 75
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    file = newest.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01"[:1])
    assert newest.step == 10
    assert finetune(path, "steps=10", "epochs=null") == 0
    out = capsys.readouterr().out
    assert "passed over" in out
    assert "step 8" in out
    assert verify(newest.path) == []  # saved anew


def test_an_earlier_run_s_best_does_not_compete(tmp_path, monkeypatch):
    scripted(monkeypatch, [1.0])
    assert finetune(config_file(tmp_path, epochs=1)) == 0
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "gone")
    scripted(monkeypatch, [0.1])
    assert finetune(config_file(tmp_path, epochs=1)) == 0
    assert read_report(tmp_path / "run")["best"]["dev_score"] == 0.1
    assert (tmp_path / "run" / "best.previous" / "score.json").is_file()


def test_dev_is_cut_from_train_where_none_is_given(tmp_path):
    assert finetune(config_file(tmp_path, data__dev=None, data__test=None, epochs=1)) == 0
    found = read_report(tmp_path / "run")
    assert found["split"] == "dev"
    assert found["examples"] in (8, 9, 10)
    assert found["seen_in_train"] == 0


def test_labels_may_be_anything(tmp_path):
    """More than ten classes, so that their order as text is not their order as numbers."""
    names = [*range(9), "größer 中", 'a"b', "x\ty", "LABEL_0", "emoji 🐄"]
    rows = [{"text": f"w{i} w{i}", "label": name} for i, name in enumerate(names)] * 8
    for name in ("train", "dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    assert finetune(config_file(tmp_path, **LEARN)) == 0
    found = read_report(tmp_path / "run")
    assert sorted(found["labels"]) == sorted(map(str, names))
    assert found["accuracy"] == 1.0
    assert [row["predicted"] for row in predictions(tmp_path / "run")] == [
        str(r["label"]) for r in rows
    ]
    arguments = [str(tmp_path / "run"), str(tmp_path / "test.jsonl")]
    assert main(["predict", *arguments, "--output", str(tmp_path / "out")]) == 0
    found = [orjson.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
    assert [row["predicted"] for row in found] == [str(row["label"]) for row in rows]
    best = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert {best["id2label"][str(i)] for i in range(14)} == set(map(str, names))


def test_a_head_for_the_same_classes_is_kept_and_another_is_not(tmp_path, capsys):
    assert finetune(config_file(tmp_path, **LEARN)) == 0
    first, run_dir = read_report(tmp_path / "run")["accuracy"], tmp_path / "run"
    again = {"run__dir": str(tmp_path / "again"), "model": str(run_dir), "steps": 1, "epochs": None}
    assert finetune(config_file(tmp_path, **again, optim__lr=1e-9)) == 0
    assert "taken from the checkpoint" in capsys.readouterr().out
    assert read_report(tmp_path / "again")["accuracy"] == pytest.approx(first)
    for name in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
        write_jsonl(tmp_path / f"{name}.jsonl", [{**r, "label": r["label"] + "s"} for r in rows])
    other = {**again, "run__dir": str(tmp_path / "other")}
    assert finetune(config_file(tmp_path, **other, optim__lr=1e-9)) == 0
    assert "drawn anew" in capsys.readouterr().out
    old, new = weights(run_dir)["score.weight"], weights(tmp_path / "other")["score.weight"]
    assert (old - new).abs().max() > 0.01


def test_divergence_is_one_line(tmp_path, capsys):
    path = config_file(tmp_path, optim__lr=1e30, optim__max_grad_norm=0)
    assert finetune(path) == 1
    assert "training diverged; lower optim.lr" in capsys.readouterr().err
    for info in list_checkpoints(tmp_path / "run" / "checkpoints"):
        assert all(t.isfinite().all() for t in load_file(info.path / "model.safetensors").values())


def test_truncation_is_said(tmp_path, capsys):
    assert finetune(config_file(tmp_path, task__max_length=4, epochs=1)) == 0
    assert "train texts are longer than task.max_length = 4 and were cut" in capsys.readouterr().out
    texts = [json.loads(line)["text"] for line in (tmp_path / "test.jsonl").open()]
    assert read_report(tmp_path / "run")["truncated"] == sum(len(t.split()) > 4 for t in texts)


def test_what_a_head_knew_of_shared_classes_is_kept(tmp_path, capsys):
    assert finetune(config_file(tmp_path, **LEARN)) == 0
    for name in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
        rows = [{**r, "label": r["label"].replace("cat", "zebra")} for r in rows]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    one = {"run__dir": str(tmp_path / "new"), "model": str(tmp_path / "run"), "steps": 1}
    assert finetune(config_file(tmp_path, **one, epochs=None, optim__lr=1e-9)) == 0
    assert "drawn anew, but for what it knew of cow, dog" in capsys.readouterr().out
    old, new = (weights(tmp_path / name)["score.weight"] for name in ("run", "new"))
    assert torch.allclose(new[:2], old[1:], atol=1e-6)  # cat, cow, dog → cow, dog, zebra
    assert (new[2] - old[0]).abs().max() > 0.01
