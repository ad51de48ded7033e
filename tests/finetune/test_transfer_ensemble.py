"""Several models as one, and scores without training, against numpy and transformers."""

import json

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import expit, logit, softmax
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from finetune.__main__ import main
from finetune.transfer.ensemble import _mean
from tests.finetune.test_transfer_auto import MASK, with_mask
from tests.finetune.toys import (
    END,
    animal_texts,
    checkpoint,
    config_file,
    finetune,
    read_report,
    word_tokenizer,
)


def runs(directory, count=2, **changes):
    shape = {"epochs": 1, "optim__lr": 1e-2, **changes}
    for seed in range(count):
        run_dir = str(directory / f"run{seed}")
        assert finetune(config_file(directory, run__dir=run_dir, run__seed=seed, **shape)) == 0
    return [str(directory / f"run{seed}") for seed in range(count)]


def probabilities(path):
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return np.array([list(row["probabilities"].values()) for row in rows])


@pytest.mark.parametrize("how", ["softmax", "softmax_over_tokens", "sigmoid", "none"])
def test_means_are_those_of_numpy(how):
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 3, (3, 4, 5, 2))
    found = _mean(torch.tensor(logits), how).numpy()
    if how == "none":
        assert found == pytest.approx(logits.mean(0))
    elif how == "sigmoid":
        assert found == pytest.approx(logit(expit(logits).mean(0)), abs=1e-9)
    else:
        axis = 2 if how == "softmax_over_tokens" else -1
        assert np.exp(found) == pytest.approx(softmax(logits, axis=axis).mean(0))


def test_probabilities_are_the_mean_of_the_members(tmp_path, capsys):
    members = runs(tmp_path)
    out = tmp_path / "out"
    data = str(tmp_path / "test.jsonl")
    assert main(["ensemble", str(out), *members, "--probabilities", "--data", data]) == 0
    own = [probabilities(tmp_path / f"run{i}" / "predictions.jsonl") for i in range(2)]
    assert not np.allclose(*own)
    assert probabilities(out / "predictions.jsonl") == pytest.approx(np.mean(own, 0), abs=2e-6)
    report = read_report(out)
    assert [m["scores"]["accuracy"] for m in report["members"]] == [
        read_report(tmp_path / f"run{i}")["accuracy"] for i in range(2)
    ]
    assert f"accuracy {report['accuracy']:.4f}" in capsys.readouterr().out.splitlines()[-2]


def test_weights_are_averaged_into_a_model_like_any_other(tmp_path):
    members = runs(tmp_path, 3)
    out = tmp_path / "out"
    assert main(["ensemble", str(out), *members]) == 0
    states = [load_file(tmp_path / f"run{i}" / "best" / "model.safetensors") for i in range(3)]
    found = load_file(out / "model.safetensors")
    assert found.keys() == states[0].keys()
    for name, value in found.items():
        expected = np.mean([state[name].double().numpy() for state in states], 0)
        assert value.numpy() == pytest.approx(expected, abs=1e-7)
    told = tmp_path / "told"
    data = str(tmp_path / "test.jsonl")
    assert main(["evaluate", str(out), data, "--output", str(told)]) == 0
    assert read_report(told)["examples"] == 30


def test_what_cannot_be_averaged_is_told(tmp_path, capsys):
    members = runs(tmp_path, 1)
    checkpoint(tmp_path / "wide", d_model=64)
    wide = str(tmp_path / "run-wide")
    path = config_file(tmp_path, model=str(tmp_path / "wide"), run__dir=wide, epochs=1)
    assert finetune(path) == 0
    out = str(tmp_path / "out")
    assert main(["ensemble", out, *members, wide]) == 2
    assert "has another shape than" in capsys.readouterr().err
    data = str(tmp_path / "test.jsonl")
    assert main(["ensemble", out, *members, wide, "--probabilities", "--data", data]) == 0
    assert main(["ensemble", out, *members, wide, "--probabilities", "--data", data]) == 2
    assert "is there already" in capsys.readouterr().err


def test_evaluate_says_what_the_run_s_report_says(tmp_path):
    (member,) = runs(tmp_path, 1)
    out = tmp_path / "out"
    assert main(["evaluate", member, str(tmp_path / "test.jsonl"), "--output", str(out)]) == 0
    found, expected = read_report(out), read_report(tmp_path / "run0")
    for name in ("accuracy", "macro_f1", "confusion_matrix"):
        assert found[name] == expected[name], name
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)  # in batches of another size


def zero_shot(directory, data, out, *options):
    command = ["evaluate", str(directory), str(data), "--output", str(out), *options]
    words = "cat=miaow,dog=woof woof,cow=moo"
    return main([*command, "--prompt", "w1 {text} w2 {label} w3", "--words", words])


ANSWERS = ["miaow", "moo", "woof woof"]  # of cat, cow, dog


def tensor(tokenizer, text):
    return torch.tensor([tokenizer.encode(text).ids])


@pytest.mark.parametrize("calibrates", [False, True])
def test_a_causal_model_s_answers_are_those_of_transformers(tmp_path, calibrates):
    base = checkpoint(tmp_path / "base", family="gpt2", init_std=0.3)
    config_file(tmp_path)
    out = tmp_path / "out"
    options = ["--calibrate"] if calibrates else []
    assert zero_shot(base, tmp_path / "test.jsonl", out, *options) == 0
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(base), word_tokenizer()

    def scores(text):
        found = []
        for answer in ANSWERS:
            start = len(tokenizer.encode(f"w1 {text} w2").ids)
            ids = tensor(tokenizer, f"w1 {text} w2 {answer} w3")
            with torch.no_grad():
                told = theirs(ids).logits[0].log_softmax(-1)
            pieces = range(start, start + len(answer.split()))
            found.append(np.mean([float(told[at - 1, ids[0, at]]) for at in pieces]))
        return np.array(found)

    prior = scores("") if calibrates else 0
    texts = [row["text"] for row in animal_texts(30, 3)]
    expected = softmax([scores(text) - prior for text in texts], axis=-1)
    assert probabilities(out / "predictions.jsonl") == pytest.approx(expected, abs=1e-5)


def test_a_masked_model_s_answers_are_those_of_transformers(tmp_path):
    tokenizer = with_mask()
    base = checkpoint(tmp_path / "base", tokenizer, family="bert", init_std=0.3)
    (base / "tokenizer_config.json").write_text(json.dumps({"mask_token": MASK, "pad_token": END}))
    config_file(tmp_path)
    out = tmp_path / "out"
    assert zero_shot(base, tmp_path / "test.jsonl", out) == 0
    theirs, mask = AutoModelForMaskedLM.from_pretrained(base), tokenizer.token_to_id(MASK)
    expected = []
    for row in animal_texts(30, 3):
        found = []
        for answer in ANSWERS:
            pieces = tokenizer.encode(answer).ids
            start = tokenizer.encode(f"w1 {row['text']} w2").ids
            ids = torch.tensor([[*start, *[mask] * len(pieces), *tokenizer.encode("w3").ids]])
            with torch.no_grad():
                told = theirs(ids).logits[0].log_softmax(-1)
            found.append(np.mean([float(told[len(start) + i, p]) for i, p in enumerate(pieces)]))
        expected.append(found)
    assert probabilities(out / "predictions.jsonl") == pytest.approx(
        softmax(expected, axis=-1), abs=1e-5
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "{text}"], "expected {text} once and after it {label} once"),
        (["--prompt", "{text} {label}", "--words", "cat"], "expected class=word"),
        (["--prompt", "{text} {label}", "--words", "fish=blub"], "has no class 'fish'"),
        (["task.text_kee=a"], "expected task.key=value"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, words):
    config_file(tmp_path)
    command = ["evaluate", str(tmp_path / "base"), str(tmp_path / "test.jsonl"), *options]
    if "task" in options[0]:
        command[1] = runs(tmp_path, 1)[0]
        capsys.readouterr()
    assert main(command) == 2
    assert words in capsys.readouterr().err


def test_adapters_are_merged_first(tmp_path, capsys):
    config = config_file(tmp_path, adapter__kind="lora", epochs=1)
    for seed in (1, 2):
        assert finetune(config, f"run.seed={seed}", f"run.dir={tmp_path / str(seed)}") == 0
    assert main(["ensemble", str(tmp_path / "o"), str(tmp_path / "1"), str(tmp_path / "2")]) == 2
    assert "merge them first" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
