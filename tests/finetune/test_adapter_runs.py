"""Whole fine-tuning runs with an adapter."""

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file

from finetune.adapters.config import RATES
from finetune.adapters.merge import main as merge
from finetune.config import FinetuneConfig, check
from finetune.models import open_model
from finetune.predict import main as predict
from finetune.use.prune import main as prune
from model import load_pretrained
from runtime.config import load
from runtime.errors import UserError
from tests.finetune import toys

KINDS = ("lora", "dora", "ia3", "bitfit", "houlsby", "prompt", "prefix")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_with_the_rate_of_its_kind(tmp_path, kind):
    config = toys.config_file(tmp_path, adapter__kind=kind, optim__lr=None, epochs=15)
    assert toys.finetune(config) == 0
    losses = toys.records(tmp_path / "run", "loss")
    assert np.mean(losses[-6:]) < 0.97 * np.mean(losses[:6])
    assert max(toys.records(tmp_path / "run", "lr")) == pytest.approx(RATES[kind], rel=0.01)


def test_the_rate_is_the_users_where_there_is_one(tmp_path):
    path = toys.config_file(tmp_path, adapter__kind="lora", optim__lr=None)
    assert load(FinetuneConfig, path).optim.lr == RATES["lora"]
    assert load(FinetuneConfig, path, ["optim.lr=2e-5"]).optim.lr == 2e-5
    assert load(FinetuneConfig, path, ["adapter.kind=none"]).optim.lr == 5e-5


def test_the_best_model_is_an_adapter_of_the_base(tmp_path, capsys):
    config = toys.config_file(tmp_path, adapter__kind="lora", optim__lr=None, epochs=4)
    assert toys.finetune(config) == 0
    best = tmp_path / "run" / "best"
    assert not (best / "model.safetensors").exists()
    assert "adapter lora:" in capsys.readouterr().out
    base, opened = load_pretrained(tmp_path / "base"), open_model(best).net
    state = opened.state_dict()
    for name, tensor in base.state_dict().items():
        if name.startswith("trunk."):
            there = name if name in state else name.replace(".weight", ".base_layer.weight")
            assert torch.equal(state[there], tensor), name  # the checkpoint's stay, bit for bit
    assert (
        predict(
            [str(tmp_path / "run"), str(tmp_path / "test.jsonl"), "--output", str(tmp_path / "o")]
        )
        == 0
    )
    told = [orjson.loads(line)["predicted"] for line in (tmp_path / "o").read_bytes().splitlines()]
    lines = (tmp_path / "run" / "predictions.jsonl").read_bytes().splitlines()
    assert told == [orjson.loads(line)["predicted"] for line in lines]

    assert merge([str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    whole = open_model(tmp_path / "merged")
    assert whole.labels == open_model(best).labels
    ids = torch.randint(2, 30, (4, 9))
    with torch.no_grad():
        torch.testing.assert_close(whole.net(ids).logits, opened(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_run_on_a_quantised_checkpoint(tmp_path, bits, capsys):
    toys.checkpoint(tmp_path / "base", d_model=64, d_ff=128)
    changes = {"adapter__kind": "lora", "adapter__quantize": bits, "optim__lr": None}
    config = toys.config_file(tmp_path, **changes, epochs=15, log__histograms_every_steps=20)
    assert toys.finetune(config) == 0
    losses = toys.records(tmp_path / "run", "loss")
    assert np.mean(losses[-6:]) < 0.97 * np.mean(losses[:6])
    size = sum(p.numel() for p in load_pretrained(tmp_path / "base").parameters())
    told = capsys.readouterr().out
    whole = int(told.split(" parameters (")[0].split(" of ")[-1].replace(",", ""))
    assert size < whole < 1.2 * size  # however many numbers are packed into one
    assert merge([str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    state = open_model(tmp_path / "merged").net.state_dict()
    base = load_pretrained(tmp_path / "base").state_dict()
    changed = [n for n in base if n in state and not torch.equal(base[n], state[n])]
    assert changed  # by the adapter alone: its targets, from the checkpoint's whole weights
    assert all(".attention." in name for name in changed)
    capsys.readouterr()
    assert toys.finetune(config, "parallel.zero_stage=2", f"run.dir={tmp_path / 'z'}") == 2
    assert "ZeRO can't cut quantized weights" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["lora", "bitfit", "prompt"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, kind):
    changes = {"adapter__kind": kind, "optim__lr": None, "epochs": None}
    whole = toys.config_file(tmp_path, **changes, steps=8, run__dir=str(tmp_path / "whole"))
    assert toys.finetune(whole) == 0
    first = toys.config_file(tmp_path, **changes, steps=8, schedule__kind="constant")
    assert toys.finetune(first, "steps=4") == 0
    step = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[-1]
    assert not (step / "model.safetensors").exists()
    size = (step / "adapter_model.safetensors").stat().st_size
    assert size < (tmp_path / "base" / "model.safetensors").stat().st_size
    assert toys.finetune(first) == 0
    straight = toys.config_file(
        tmp_path, **changes, steps=8, schedule__kind="constant", run__dir=str(tmp_path / "straight")
    )
    assert toys.finetune(straight) == 0
    ends = [
        load_file(
            sorted((tmp_path / name / "checkpoints").glob("step_*"))[-1]
            / "adapter_model.safetensors"
        )
        for name in ("run", "straight")
    ]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_what_does_not_go_together_is_told(tmp_path):
    def problems(**changes):
        config = load(FinetuneConfig, toys.config_file(tmp_path, **changes))
        return {p.key: p.message for p in check(config, 1)}

    found = problems(adapter__kind="lora", transfer__strategy="head")
    assert "keeps the checkpoint's weights" in found["transfer.strategy"]
    assert (
        "changes no linear map"
        in problems(adapter__kind="prompt", adapter__targets=["up"])["adapter.targets"]
    )
    assert (
        "output or down"
        in problems(adapter__kind="houlsby", adapter__targets=["qkv"])["adapter.targets"]
    )
    assert problems(adapter__kind="lora") == {}
    bert = toys.checkpoint(tmp_path / "bert", family="bert")
    found = problems(adapter__kind="prefix", model=str(bert))
    assert "reads both ways" in found["adapter.kind"]
    found = problems(adapter__kind="prompt", adapter__virtual_tokens=40, model=str(bert))
    assert "64 positions" in found["adapter.virtual_tokens"]


def test_an_adapter_is_no_model_to_start_from(tmp_path):
    config = toys.config_file(tmp_path, adapter__kind="lora", epochs=1)
    assert toys.finetune(config) == 0
    again = load(
        FinetuneConfig, config, [f"model={tmp_path / 'run' / 'best'}", f"run.dir={tmp_path / 'b'}"]
    )
    assert "python -m finetune merge" in {p.key: p.message for p in check(again, 1)}["model"]
    with pytest.raises(UserError, match="nothing to merge"):
        merge([str(tmp_path / "base"), str(tmp_path / "o")])
    with pytest.raises(UserError, match="first make one"):
        prune([str(tmp_path / "run"), str(tmp_path / "pruned"), "--sparsity", "0.5"])
