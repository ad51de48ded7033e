"""Runs in FP8, emulated: near those in bf16 under every layout, with the same checkpoints."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from model import build, float8, preset
from pretrain.build import float8_notes
from pretrain.config import PretrainConfig, check
from runtime import dist
from runtime.config import ConfigError, load
from runtime.errors import UserError
from tests.processes import run

pytest.importorskip("torchao")

Write = Callable[..., Path]
KEYS: dict[str, Any] = {"schedule__kind": "constant", "model__dropout": 0.0, "steps": 12}
WITHIN = 2e-2  # of bf16's losses


def train(path: Path, *overrides: str, ranks: int = 1) -> str:
    status, output = run(["-m", "pretrain", str(path), *overrides], ranks)
    assert status == 0, output
    return output


def losses(run_dir: Path) -> dict[int, float]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {r["step"]: r["loss"] for r in lines if "loss" in r}


def tensors(checkpoint: Path) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Names, formats and shapes of all of a checkpoint's tensors, training state too."""
    found = {}
    for path in sorted(checkpoint.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_tensor(name)
                found[f"{path.relative_to(checkpoint)}: {name}"] = (tensor.dtype, tensor.shape)
    return found


def test_a_run_learns_as_in_bf16_and_goes_on_in_it_and_back(
    write_config: Write, tmp_path: Path
) -> None:
    train(write_config(run__dir=str(tmp_path / "bf16"), precision="bf16", **KEYS))
    plain = losses(tmp_path / "bf16")
    path = write_config(run__dir=str(tmp_path / "fp8"), precision="fp8", **KEYS)
    told = train(path, "steps=4")
    assert "all 8 linear maps of the blocks in FP8\n" in told
    assert "warning: FP8 is emulated on a CPU" in told
    assert "Failed to load" not in told  # torchao, of kernels that are not used
    saved = tensors(tmp_path / "fp8" / "checkpoints" / "step_00000004")
    assert saved == tensors(tmp_path / "bf16" / "checkpoints" / "step_00000012")
    of_model = [dtype for name, (dtype, _) in saved.items() if name.startswith("model")]
    assert of_model
    assert set(of_model) == {torch.bfloat16}
    told = train(path, "steps=8", "precision=bf16")
    assert "changed: precision was fp8, now bf16" in told
    assert "linear maps" not in told
    told = train(path)
    assert "changed: precision was bf16, now fp8" in told
    assert "resumed from" in told
    found = losses(tmp_path / "fp8")
    assert list(found) == list(range(1, 13))
    assert found == pytest.approx(plain, rel=WITHIN)
    assert all(found[step] != plain[step] for step in (1, 2, 9, 10)), "nothing was rounded"
    assert found[12] < 0.8 * found[1]


LAYOUTS: list[dict[str, Any]] = [
    {"parallel__zero_stage": 1, "batch__micro_batch_size": 2},
    {"parallel__zero_stage": 2, "parallel__activation_checkpointing": "block"},
    {"parallel__zero_stage": 3, "batch__micro_batch_size": 2, "data__packing": "best_fit"},
    {"parallel__zero_stage": 3, "optim__name": "muon", "parallel__offload": "all"},
]
SHORT = KEYS | {"steps": 6, "checkpoint__every_steps": 0, "evaluate__every_steps": 0}


@pytest.mark.slow
@pytest.mark.parametrize("keys", LAYOUTS, ids=lambda v: " ".join(map(str, v.values())))
def test_two_ranks_under_every_stage(
    keys: dict[str, Any], write_config: Write, tmp_path: Path
) -> None:
    kept = SHORT | {k: v for k, v in keys.items() if k in ("data__packing", "optim__name")}
    train(write_config(run__dir=str(tmp_path / "bf16"), precision="bf16", **kept))
    train(write_config(run__dir=str(tmp_path / "fp8"), precision="fp8", **SHORT, **keys), ranks=2)
    plain, found = losses(tmp_path / "bf16"), losses(tmp_path / "fp8")
    assert list(found) == list(range(1, 7))
    assert found == pytest.approx(plain, rel=WITHIN)
    assert found[1] != plain[1], "nothing was rounded"


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(PretrainConfig, path, overrides, lambda config: check(config, 1))
    (line,) = error.value.lines
    return line


def test_what_is_refused_before_the_start(
    write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(precision="fp8")
    told = refused(path, "model.d_model=24")
    assert "precision: fp8 takes linear maps whose widths are multiples of 16" in told
    assert "model.d_model = 24; write another model.d_model, or bf16" in told
    assert "stage 0 with fp8" in refused(path, "parallel.zero_stage=0")
    assert "did you mean fp8?" in refused(path, "precision=fp9")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "run pip install 'ingot[fp8]', or write bf16" in refused(path)


@pytest.mark.parametrize(("capability", "is_there"), [((8, 6), False), ((8, 9), True)])
def test_gpus_without_it_are_refused(
    capability: tuple[int, int], is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    cuda = torch.device("cuda")
    dist.require_precision("bf16", cuda)
    dist.require_precision("fp8", torch.device("cpu"))
    if is_there:
        dist.require_precision("fp8", cuda)
        return
    with pytest.raises(UserError, match=r"precision: Card has no FP8: .* is 8\.6, and 8\.9 is"):
        dist.require_precision("fp8", cuda)


def test_what_is_said_at_the_start() -> None:
    net = build(preset("llama-tiny", n_layers=1, d_model=32, n_heads=2, n_kv_heads=2, d_ff=40))
    float8.use_in(net.trunk, emulate=True)
    maps, warning = float8_notes(net, torch.device("cuda"), is_compiled=False)
    assert maps.startswith("3 of 4 linear maps of the blocks in FP8; 1 in bf16, because")
    assert "write compile: true" in warning
    assert float8_notes(net, torch.device("cuda"), is_compiled=True) == [maps]
    assert "emulated" in float8_notes(net, torch.device("cpu"), is_compiled=True)[1]
