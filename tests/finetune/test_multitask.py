"""Several tasks over one trunk: whose step it is, what learns, what is saved, ranks, resuming."""

from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from finetune.batches import Plan
from finetune.devices import plain
from finetune.models import open_model
from finetune.multitask.config import Member, MultitaskConfig, names_with_shares
from finetune.multitask.joint import Joint, Mixture, Turns
from runtime.checkpoint import list_checkpoints, verify
from tests.finetune.robust_toys import batch, network
from tests.finetune.test_train import LEARN, same, stop_after, weights
from tests.finetune.toys import (
    animal_texts,
    checkpoint,
    finetune,
    read_report,
    records,
    write_jsonl,
)
from tests.processes import run


def farm_file(path, count, seed):
    """Another question about such texts: whether the animal lives on a farm."""
    rows = animal_texts(count, seed, longest=6)
    return write_jsonl(
        path, [{"text": r["text"], "farm": "yes" if r["label"] == "cow" else "no"} for r in rows]
    )


def config_of(directory, train=120, **changes):
    """Which animal (many texts), and whether from a farm (fewer)."""
    for part, count, seed in (("train", train, 1), ("dev", 30, 2), ("test", 30, 3)):
        write_jsonl(directory / f"animal-{part}.jsonl", animal_texts(count, seed, longest=6))
        farm_file(directory / f"farm-{part}.jsonl", max(30, count // 2), seed + 10)
    if not (directory / "base").exists():
        checkpoint(directory / "base")

    def member(name, label):
        parts = ("train", "dev", "test")
        data = {part: str(directory / f"{name}-{part}.jsonl") for part in parts}
        return {"name": name, "task": {"label_key": label, "max_length": 32}, "data": data}

    values = {
        "run": {"dir": str(directory / "run"), "device": "cpu"},
        "model": str(directory / "base"),
        "tasks": [member("animal", "label"), member("farm", "farm")],
        "batch": {"global_batch_size": 16},
        "epochs": 2,
        "optim": {"lr": 1e-3},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    for dotted, value in changes.items():
        at = values
        *parents, last = dotted.split("__")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    path = directory / f"config-{abs(hash(repr(values)))}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def multitask(path, *overrides):
    return finetune("multitask", str(path), *overrides)


# --- one trunk -------------------------------------------------------------------------------


def test_the_trunk_is_one_and_the_models_say_what_they_said():
    first, second = network(num_labels=3), network(num_labels=2)
    data = batch()
    inputs = {name: value for name, value in data.items() if name != "labels"}
    expected = second(**inputs).logits
    net = Joint({"a": first, "b": second})
    assert net.part("a").trunk is net.part("b").trunk is net.trunk
    assert torch.equal(net("b", **inputs).logits, expected)
    trunk = sum(p.numel() for p in first.trunk.parameters())
    heads = [part for n in (first, second) for part in (n.pooler, n.score)]
    own = sum(p.numel() for part in heads for p in part.parameters())
    assert sum(p.numel() for p in net.parameters()) == trunk + own
    named = dict(net.named_parameters())
    own = {there: named[here] for there, here in net.names("b").items()}
    assert all(own[name] is parameter for name, parameter in second.named_parameters())


def test_a_step_of_one_task_leaves_the_other_s_head_without_gradient():
    net = Joint({"a": network(num_labels=3), "b": network(num_labels=2)})
    data = batch(classes=2)
    turns = Turns({"a": plain, "b": plain})
    alone = network(num_labels=2)
    alone(**data).loss.backward()
    turns.part = "b"
    loss = turns(net, net, data)
    assert torch.allclose(loss, alone(**data).loss, atol=1e-6)
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None  # DDP waits for each
        if name.startswith("parts.a."):
            assert not parameter.grad.any()
    expected = dict(alone.named_parameters())
    for there, here in net.names("b").items():
        found = net.get_parameter(here).grad
        assert torch.allclose(found, expected[there].grad, atol=1e-6)


# --- whose step it is ------------------------------------------------------------------------


def mixture(shares, seed=0):
    names = [f"t{i}" for i in range(len(shares))]
    plans = {n: Plan(np.arange(1, 41), 8, 8, 0) for n in names}
    return Mixture(names, shares, plans, seed)


def test_turns_are_drawn_in_proportion_and_alike_from_anywhere():
    straight, late = mixture([0.7, 0.2, 0.1]), mixture([0.7, 0.2, 0.1])
    turns = [straight.turn(step) for step in range(2000)]
    assert late.turn(1500) == turns[1500]
    counts = Counter(name for name, _ in turns)
    assert [counts[f"t{i}"] / 2000 for i in range(3)] == pytest.approx([0.7, 0.2, 0.1], abs=0.03)
    for name in counts:
        assert [own for n, own in turns if n == name] == list(range(counts[name]))
    assert [mixture([0.7, 0.2, 0.1], 1).turn(s) for s in range(50)] != turns[:50]


@pytest.mark.parametrize(
    ("temperature", "weight", "expected"),
    [(1, 1, [0.9, 0.1]), (2, 1, [0.75, 0.25]), (1e9, 1, [0.5, 0.5]), (1, 9, [0.5, 0.5])],
)
def test_shares(temperature, weight, expected):
    members = [
        Member(name="a", data={"train": "x.csv"}),
        Member(name="b", data={"train": "y.csv"}, weight=weight),
    ]
    config = MultitaskConfig(model="m", tasks=members, temperature=temperature)
    found = dict(names_with_shares(config, [900, 100]))
    assert list(found.values()) == pytest.approx(expected, abs=1e-6)


# --- runs ------------------------------------------------------------------------------------


def test_both_tasks_are_learned_and_saved_as_models_of_their_own(tmp_path):
    path = config_of(tmp_path, train=240, **{**LEARN, "epochs": 6, "temperature": 3.0})
    assert multitask(path) == 0
    run_dir = tmp_path / "run"
    for name, labels in (("animal", ["cat", "cow", "dog"]), ("farm", ["no", "yes"])):
        report = read_report(run_dir / name)
        assert report["accuracy"] >= 0.9
        assert report["split"] == "test"
        net, task, found, _ = open_model(run_dir / name / "best")
        assert (task.keys.kind, found) == ("classification", labels)
        theirs = AutoModelForSequenceClassification.from_pretrained(run_dir / name / "best")
        ids = torch.tensor([[2, 3, 4]])
        with torch.no_grad():
            gap = (theirs(ids).logits - net.eval()(ids).logits).abs().max()
        assert float(gap) <= 1e-5
        assert max(records(run_dir, f"{name}_dev_accuracy")) >= 0.9
    (last,) = list_checkpoints(run_dir / "checkpoints")[-1:]
    assert verify(last.path) == []
    a, b = (weights(last.path, name) for name in ("animal", "farm"))
    shared = [name for name in a if not name.startswith("score")]
    assert shared
    assert all(torch.equal(a[name], b[name]) for name in shared)
    assert multitask(path) == 0  # already finished


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    assert multitask(config_of(tmp_path), f"run.dir={tmp_path / 'straight'}") == 0
    path = config_of(tmp_path)
    with monkeypatch.context() as patched:
        stop_after(patched, 7)
        assert multitask(path) == 75
    assert multitask(path) == 0
    straight, parts = tmp_path / "straight", tmp_path / "run"
    for name in ("animal", "farm"):
        assert same(weights(straight / name), weights(parts / name))
    assert records(straight, "loss") == records(parts, "loss")
    key = "farm_dev_accuracy"
    assert records(straight, key) == records(parts, key)


def test_two_ranks_equal_one(tmp_path):
    path = config_of(tmp_path, train=77, batch__global_batch_size=18, batch__micro_batch_size=3)
    assert multitask(path, f"run.dir={tmp_path / 'one'}") == 0
    command = ["-m", "finetune", "multitask", str(path), f"run.dir={tmp_path / 'two'}"]
    status, output = run(command, ranks=2)
    assert status == 0, output
    one, two = tmp_path / "one", tmp_path / "two"
    assert records(one, "loss") == pytest.approx(records(two, "loss"), abs=1e-4)
    for name in ("animal", "farm"):
        key = f"{name}_valid_loss"
        assert records(one, key) == pytest.approx(records(two, key), abs=1e-4)
        assert same(weights(one / name), weights(two / name), tolerance=2e-3)


def test_a_frozen_trunk_stays(tmp_path):
    assert multitask(config_of(tmp_path), "transfer.strategy=head") == 0
    base = weights(tmp_path, "base")
    tuned = weights(tmp_path / "run" / "farm")
    kept = [name for name in tuned if name in base and "score" not in name]
    assert len(kept) > 10
    assert all(torch.equal(base[name], tuned[name]) for name in kept)


# --- mistakes --------------------------------------------------------------------------------


def test_mistakes_are_told_where_they_are_written(tmp_path, capsys):
    path = config_of(tmp_path)
    values = yaml.safe_load(path.read_text())
    values["tasks"][1]["data"]["train"] = "nowhere.jsonl"
    values["tasks"][0]["metric"] = "acuracy"
    values["tasks"][0]["robust"] = {"class_weights": {"horse": 2.0}}
    values["transfer"] = {"strategy": "auto"}
    path.write_text(yaml.safe_dump(values))
    assert multitask(path) == 2
    told = capsys.readouterr().err
    assert "tasks.1.data.train: nowhere.jsonl: no such file" in told
    assert "tasks.0.metric: task classification has no score 'acuracy'; did you mean" in told
    assert "tasks.0.robust.class_weights: train has no class 'horse'" in told
    assert "transfer.strategy: auto measures one task; choose full" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a", "a"], "two tasks have the name 'a'; give each its own"),
        (["a", "checkpoints"], "'checkpoints' is a directory of the run itself"),
        (["a"], "at least 2"),
    ],
)
def test_names_are_refused(names, told):
    members = [{"name": name, "data": {"train": "x.csv"}} for name in names]
    with pytest.raises(ValueError, match=told):
        MultitaskConfig(model="m", tasks=members)


def test_other_tasks_do_not_take_up_a_run(tmp_path, monkeypatch, capsys):
    path = config_of(tmp_path)
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        assert multitask(path) == 75
    assert multitask(path, "temperature=5") == 2
    assert "temperature: 5.0, but the run in" in capsys.readouterr().err
