"""An adapter under ZeRO-3, where other tools save it empty (deepspeed#7900, trl#4416)."""

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.finetune import toys
from tests.processes import run


def settings(tmp_path, name, **changes):
    common = {"adapter__kind": "lora", "optim__lr": None, "epochs": None, "steps": 6}
    return toys.config_file(tmp_path, **common, run__dir=str(tmp_path / name), **changes)


def stored(directory):
    return load_file(directory / "adapter_model.safetensors")


def test_two_ranks_under_zero_3_save_a_whole_adapter(tmp_path):
    plain = settings(tmp_path, "plain")
    assert toys.finetune(plain) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    cut = settings(tmp_path, "cut", parallel__zero_stage=3)
    status, output = run(["-m", "finetune", str(cut)], ranks=2)
    assert status == 0, output
    losses = [toys.records(tmp_path / name, "loss") for name in ("plain", "cut")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    for part in ("best", "checkpoints/step_00000006"):
        expected, found = (stored(tmp_path / name / part) for name in ("plain", "cut"))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-4)
        changed = [n for n, t in found.items() if "lora_B" in n and t.abs().max() > 1e-4]
        assert len(changed) == len([n for n in found if "lora_B" in n])  # all began at zero
