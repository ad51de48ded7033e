"""What is done with a fine-tuned model: ONNX, pruning, intents, drift; by independent formulas."""

import json

import numpy as np
import onnxruntime
import orjson
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import roc_auc_score

from finetune.__main__ import main
from finetune.models import open_model
from finetune.use import export, intents, monitor
from finetune.use.prune import kept, matrices
from finetune.use.retrieval import Retrieval
from model import load_pretrained
from tests.finetune.toys import animal_texts, checkpoint, config_file, finetune, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("use")
    assert finetune(config_file(found, epochs=8, optim__lr=5e-3)) == 0
    return found


# --- export


def test_an_onnx_file_says_what_torch_says(folder, tmp_path, capsys):
    words = ["export", str(folder / "run"), str(tmp_path / "onnx"), "--int8"]
    assert main([*words, "--data", str(folder / "test.jsonl")]) == 0
    out = capsys.readouterr().out
    net = load_pretrained(folder / "run/best", head="sequence").eval()
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx/model.onnx"))
    for rows, length in ((1, 3), (5, 31)):
        ids = torch.randint(1, 38, (rows, length))
        mask = torch.ones_like(ids)
        if rows > 1:
            mask[1, 10:], ids[1, 10:] = 0, 0
        with torch.no_grad():
            expected = net(input_ids=ids, attention_mask=mask).logits.numpy()
        given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        assert np.abs(session.run(None, given)[0] - expected).max() <= 1e-5
    table = [line.split() for line in out.splitlines()[2:]]
    assert [row[0] for row in table] == ["torch", "model.onnx", "model_int8.onnx"]
    assert table[0][2] == table[1][2]  # the same accuracy
    for name in ("tokenizer.json", "task.json", "config.json"):
        assert (tmp_path / "onnx" / name).is_file()


def test_an_onnx_file_that_differs_is_not_kept(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "_largest_difference", lambda *_: float("nan"))
    assert main(["export", str(folder / "run"), str(tmp_path / "onnx")]) == 1
    assert "its logits differ from torch's by nan" in capsys.readouterr().err
    assert not (tmp_path / "onnx/model.onnx").exists()


def test_a_pair_told_by_segments_is_not_exported(tmp_path, capsys):
    checkpoint(tmp_path / "base", family="bert")
    rows = [{**row, "pair": "w1"} for row in animal_texts(30)]
    for name in ("train", "dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    assert finetune(config_file(tmp_path, task__pair_key="pair", epochs=1)) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "onnx")]) == 2
    assert "tells two texts apart by token_type_ids" in capsys.readouterr().err


# --- pruning


def test_two_of_four_neighbours_stay():
    matrix = torch.randn(6, 16)
    mask = kept(matrix, None, (2, 4))
    groups = matrix.abs().view(-1, 4).numpy()
    for group, stays in zip(groups, mask.view(-1, 4).numpy(), strict=True):
        assert set(np.flatnonzero(stays)) == set(np.argsort(-group)[:2])


def test_the_smallest_share_goes():
    matrix = torch.randn(10, 7)
    mask = kept(matrix, 0.3, None)
    assert int((mask == 0).sum()) == 21
    assert matrix.abs()[mask == 0].max() < matrix.abs()[mask == 1].min()


def test_a_pruned_directory_holds_the_zeros(folder, tmp_path, capsys):
    words = ["prune", str(folder / "run"), str(tmp_path / "p"), "--pattern", "2:4"]
    assert main([*words, "--data", str(folder / "test.jsonl")]) == 0
    assert "(50.0%)" in capsys.readouterr().out
    before, after = (
        load_pretrained(p, head="sequence") for p in (folder / "run/best", tmp_path / "p")
    )
    for (name, a), (_, b) in zip(matrices(before), matrices(after), strict=True):
        assert int((b == 0).sum()) == b.numel() // 2, name
        assert torch.equal(a * (b != 0), b)
    changed = {name for name, _ in matrices(before)}
    others = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        assert name in changed or torch.equal(parameter, others[name])
    assert main([*words, "--data", str(folder / "test.jsonl")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["prune", str(folder / "run"), str(tmp_path / "q"), "--pattern", "2:5"]) == 2
    assert "is no multiple of 5" in capsys.readouterr().err


# --- intents


def test_the_threshold_tells_most_right():
    draw = np.random.default_rng(0)
    known, unknown = draw.beta(5, 2, 200), draw.beta(2, 3, 40)
    threshold = intents.choose(known, unknown)

    def right(t):
        return (known >= t).mean() + (unknown < t).mean()

    assert right(threshold) >= max(right(t) for t in np.linspace(0, 1, 2001)) - 1e-12
    found = intents.separation(known, unknown, threshold)
    gold = [1] * 200 + [0] * 40
    assert found["auroc"] == pytest.approx(roc_auc_score(gold, np.concatenate([known, unknown])))
    pairs = (known[:, None] > unknown[None]).mean()
    assert found["auroc"] == pytest.approx(pairs)


def test_questions_out_of_scope_get_their_nearest(folder, tmp_path, capsys):
    oos = write_jsonl(tmp_path / "oos.jsonl", [{"text": f"w{n} w{n + 1}"} for n in range(25)])
    words = ["intents", str(folder / "run"), "--dev", str(folder / "dev.jsonl")]
    tests = ["--test", str(folder / "test.jsonl"), "--oos-test", str(oos)]
    assert main([*words, "--oos-dev", str(oos), *tests]) == 0
    assert "auroc" in capsys.readouterr().out
    content = json.loads((folder / "run/best/intents.json").read_text())
    asked = {}
    for name, path in (("known", folder / "test.jsonl"), ("unknown", oos)):
        out = tmp_path / f"{name}.jsonl"
        assert main(["predict", str(folder / "run"), str(path), "--output", str(out)]) == 0
        asked[name] = [orjson.loads(row)["probability"] for row in out.read_bytes().splitlines()]
    gold = [1] * len(asked["known"]) + [0] * len(asked["unknown"])
    expected = roc_auc_score(gold, asked["known"] + asked["unknown"])
    assert content["test"]["auroc"] == pytest.approx(expected, abs=1e-3)  # rounded to 6 digits
    questions = write_jsonl(tmp_path / "asked.jsonl", [{"text": "w1 w2"}, *animal_texts(20, 4)])
    output = tmp_path / "said.jsonl"
    predict = ["predict", str(folder / "run"), str(questions), "--output", str(output)]
    assert main(predict) == 0
    rows = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    content["threshold"] = float(np.median([row["probability"] for row in rows]))
    (folder / "run/best/intents.json").write_bytes(orjson.dumps(content))
    assert main([*predict, "--intents"]) == 0
    rows = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    outside = [row for row in rows if row["intent"] == "out_of_scope"]
    assert {row["probability"] < content["threshold"] for row in outside} == {True}
    assert all(row["intent"] == row["predicted"] for row in rows if row not in outside)
    assert outside[0]["nearest"][0]["similarity"] > 0
    assert outside[0]["nearest"][0]["label"] in {"cat", "cow", "dog"}


def test_retrieval_finds_what_shares_rare_words():
    english = Retrieval(["how do i pay", "how do i leave", "where is my card"])
    assert [found.number for found in english.nearest("my card is lost", 2)] == [2]
    chinese = Retrieval(["怎么付款", "怎么退出", "我的卡在哪里"])
    assert chinese.nearest("卡丢了在哪里找", 1)[0].number == 2


# --- drift


def summary(draw, classes, tokens, length, count=400):
    return monitor.Observed(
        np.eye(5)[draw.choice(5, count, p=classes)],
        draw.uniform(0.5, 0.9, count),
        draw.multinomial(length, tokens, count).astype(float),
    )


def test_measures_follow_their_formulas():
    draw = np.random.default_rng(0)
    one = summary(draw, np.full(5, 0.2), np.full(50, 0.02), 10).summary(np.ones(400))
    two = summary(draw, [0.6, 0.1, 0.1, 0.1, 0.1], np.arange(1, 51) / 1275, 15)
    two = two.summary(np.ones(400))
    p, q = (one.classes + 0.5) / 402.5, (two.classes + 0.5) / 402.5
    assert monitor.classes_psi(one, two) == pytest.approx(sum((p - q) * np.log(p / q)))
    expected = jensenshannon(one.tokens, two.tokens, base=2) ** 2
    assert monitor.tokens_js(one, two) == pytest.approx(expected)
    assert monitor.length(one, two) == pytest.approx(0.5)


@pytest.mark.parametrize(("old", "new"), [(200, 60), (200, 2000), (500, 500)])
def test_chance_is_no_drift_and_a_shift_is(old, new):
    """Also where many tokens are rare, and where few old texts stand against many new ones."""
    zipf = 1 / np.arange(1, 1001)
    zipf /= zipf.sum()
    told = []
    for seed in range(10):
        draw = np.random.default_rng(seed)
        first = summary(draw, np.full(5, 0.2), zipf, 10, count=old)
        found = monitor.drift(first, summary(draw, np.full(5, 0.2), zipf, 10, count=new))
        told += [name for name, row in found.items() if row["drifted"]]
        shifted = summary(draw, [0.8, 0.05, 0.05, 0.05, 0.05], zipf, 10, count=new)
        found = monitor.drift(first, shifted)
        assert found["classes_psi"]["drifted"]
        other = summary(draw, np.full(5, 0.2), zipf[::-1], 10, count=new)
        assert monitor.drift(first, other)["tokens_js"]["drifted"]
    assert len(told) <= 2  # of 40 comparisons, each wrong once in a hundred at most


def test_the_reference_is_drawn_from_all_of_dev(folder, capsys):
    """A file sorted by class against itself, of which a part is looked at."""
    dev = folder / "dev.jsonl"
    before = dev.read_text()
    write_jsonl(dev, sorted(animal_texts(300, seed=2), key=lambda row: row["label"]))
    try:
        assert main(["monitor", str(folder / "run"), str(dev), "--limit", "100"]) == 0
    finally:
        dev.write_text(before)
    assert "no drift" in capsys.readouterr().out


def test_new_texts_of_another_kind_end_with_1(folder, tmp_path, capsys):
    words = ["monitor", str(folder / "run")]
    assert main([*words, str(folder / "dev.jsonl")]) == 0
    assert "no drift" in capsys.readouterr().out
    other = write_jsonl(tmp_path / "o.jsonl", [{"text": "purr " * 30}] * 40)
    assert main([*words, str(other), "--json", str(tmp_path / "m.json")]) == 1
    assert "drifted: " in capsys.readouterr().out
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["tokens_js"]["drifted"]
    assert found["texts"] == 40


def test_a_fine_tuned_directory_says_what_it_is_for(folder):
    opened = open_model(folder / "run/best")
    assert (opened.task.kind, opened.labels) == ("classification", ["cat", "cow", "dog"])
    assert opened.task.keys.max_length == 32
