"""Whole runs of every strategy: what their files hold, resumed and on two ranks."""

import pytest
import torch
from safetensors.torch import load_file

from runtime.checkpoint import list_checkpoints
from tests.finetune.test_train import same, stop_after, weights
from tests.finetune.toys import checkpoint, config_file, finetune, read_report, records
from tests.processes import run

SHORT = {"epochs": 1, "optim__lr": 1e-2, "optim__weight_decay": 0.1}


def equal(a, b):
    """The tensors, by transformers' names, that two directories hold alike, bit for bit."""
    return {name for name in a if name in b and torch.equal(a[name], b[name])}


def newest(run_dir):
    return load_file(list_checkpoints(run_dir / "checkpoints")[-1].path / "model.safetensors")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert"])
def test_frozen_weights_are_those_of_the_checkpoint_after_a_run(tmp_path, family):
    base = load_file(checkpoint(tmp_path / "base", family=family) / "model.safetensors")
    for strategy in ("head", "partial"):
        run_dir = tmp_path / strategy
        changes = {**SHORT, "run__dir": str(run_dir), "transfer__strategy": strategy}
        assert finetune(config_file(tmp_path, **changes)) == 0
        for found in (weights(run_dir), newest(run_dir)):
            shared = {n for n in found if n in base}
            assert shared
            # Of two layers `partial` keeps the first; its names are those with a 0.
            stays = {n for n in shared if ".0." in n or "embed" in n or "wte" in n or "wpe" in n}
            expected = stays if strategy == "partial" else {n for n in shared if _is_trunk(n)}
            assert equal(found, base) == expected, strategy


def _is_trunk(name):
    """Whether transformers' class without a head has it: of ModernBERT's, all but `head`."""
    return not name.startswith(("head.", "cls.", "decoder.", "lm_head."))


def test_architecture_knows_nothing_of_the_weights(tmp_path):
    """Two checkpoints of one shape make the very same run, and not that of full."""
    for name in ("base", "other"):
        checkpoint(tmp_path / name)
    fresh = {**SHORT, "transfer__strategy": "architecture"}
    for name in ("base", "other"):
        changes = {
            **fresh,
            "run__dir": str(tmp_path / f"run-{name}"),
            "model": str(tmp_path / name),
        }
        assert finetune(config_file(tmp_path, **changes)) == 0
    assert same(weights(tmp_path / "run-base"), weights(tmp_path / "run-other"))
    assert finetune(config_file(tmp_path, **SHORT)) == 0
    assert not same(weights(tmp_path / "run-base"), weights(tmp_path / "run"))
    # Another seed draws other weights.
    changes = {**fresh, "run__dir": str(tmp_path / "seed"), "run__seed": 1}
    assert finetune(config_file(tmp_path, **changes)) == 0
    assert not same(weights(tmp_path / "run-base"), weights(tmp_path / "seed"))


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "head"},
        {"strategy": "partial", "layer_decay": 0.7},
        {"strategy": "architecture"},
        {"reinit_layers": 1, "layer_decay": 0.7, "unfreeze_every_steps": 4},
    ],
    ids=["head", "partial", "architecture", "gradual"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, settings):
    shape = {f"transfer__{name}": value for name, value in settings.items()}
    shape |= {"epochs": 3, "optim__lr": 1e-2}
    straight = tmp_path / "straight"
    assert finetune(config_file(tmp_path, run__dir=str(straight), **shape)) == 0
    path = config_file(tmp_path, **shape)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        assert finetune(path) == 75
    assert finetune(path) == 0
    assert records(tmp_path / "run", "loss") == records(straight, "loss")
    assert same(newest(tmp_path / "run"), newest(straight))


def test_two_ranks_unfreeze_as_one_does(tmp_path):
    shape = {"transfer__unfreeze_every_steps": 3, "transfer__layer_decay": 0.5}
    shape |= {"transfer__strategy": "partial", "transfer__freeze_layers": 0}
    shape |= {"batch__micro_batch_size": 4, "epochs": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    assert finetune(config_file(tmp_path, run__dir=str(one), **shape)) == 0
    status, output = run(["-m", "finetune", str(config_file(tmp_path, run__dir=str(two), **shape))],
                         ranks=2)  # fmt: skip
    assert status == 0, output
    assert records(one, "loss") == pytest.approx(records(two, "loss"), abs=1e-4)
    assert same(weights(one), weights(two), tolerance=2e-3)


def test_what_a_strategy_does_is_said(tmp_path, capsys):
    changes = {**SHORT, "transfer__strategy": "partial", "transfer__unfreeze_every_steps": 50}
    assert finetune(config_file(tmp_path, **changes)) == 0
    said = capsys.readouterr().out
    assert "the embeddings and 1 of 2 layers stay as the checkpoint has it" in said
    assert "warning: 6 steps with transfer.unfreeze_every_steps 50 end before the lowest 1" in said
    assert read_report(tmp_path / "run")["examples"] == 30


def test_settings_that_do_not_fit_are_told_with_their_place(tmp_path, capsys):
    path = config_file(tmp_path, transfer__strategy="partial", transfer__freeze_layers=5)
    assert finetune(path) == 2
    assert "transfer.freeze_layers: 5 is more than the model's 2 layers" in capsys.readouterr().err
