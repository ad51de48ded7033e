"""Runs of plain DeepSpeed that go on under Ingot, with the losses they would have had."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pretrain import deepspeed_import
from pretrain.__main__ import main
from pretrain.masters import export_fp32
from runtime.checkpoint import newest_verified, verify
from runtime.checkpoint.export import export
from runtime.deepspeed_checkpoint import open_checkpoint
from runtime.errors import UserError
from runtime.records import read_metrics
from tests.pretrain.deepspeed_worker import LAST, SAVE_AT
from tests.processes import ROOT, environment, run

Write = Callable[..., Path]
GPT2 = ["model.family=gpt2", "model.n_kv_heads=null", "model.d_ff=43"]
LLAMA = ["model.d_ff=43", "model.tie_embeddings=false"]


class Job(NamedTuple):
    """A run of plain DeepSpeed."""

    name: str
    model: str
    stage: int
    overrides: list[str]
    frozen: bool = False


JOBS = [
    *(Job(f"gpt2-{stage}", "gpt2", stage, GPT2) for stage in range(4)),
    *(Job(f"llama-{stage}", "llama", stage, LLAMA) for stage in (1, 2, 3)),
    Job("ours-2", "ours", 2, LLAMA),
    Job("frozen-2", "gpt2", 2, GPT2, frozen=True),
    Job("frozen-3", "gpt2", 3, GPT2, frozen=True),
]
GO_ON = [job.name for job in JOBS if not job.frozen]


class Trained(NamedTuple):
    """Where everything lies."""

    config: Path
    root: Path

    def losses(self, name: str) -> dict[int, float]:
        """What plain DeepSpeed went through."""
        found = json.loads((self.root / name / "losses.json").read_text())
        return {int(step): loss for step, loss in found.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Trained:
    """All runs of plain DeepSpeed, by two ranks that import it once."""
    import yaml

    root = tmp_path_factory.mktemp("deepspeed")
    settings = {
        "run": {"name": "tiny", "seed": 3},
        "model": {"preset": None, "family": "llama", "n_layers": 2, "n_heads": 2}
        | {"n_kv_heads": 1, "d_model": 16, "max_seq_len": 64, "dropout": 0.0},
        "data": {"train": str(corpus), "seq_len": 32},
        "batch": {"global_batch_size": 8},
        "steps": LAST,
        "optim": {"lr": 1e-2},
        "schedule": {"kind": "constant"},
        "precision": "fp32",
        "checkpoint": {"every_steps": 0},
        "evaluate": {"every_steps": 0},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    config = root / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings))
    jobs = [{**job._asdict(), "dir": str(root / job.name)} for job in JOBS]
    (root / "jobs.json").write_text(json.dumps({"config": str(config), "jobs": jobs}))
    status, output = run(["-m", "tests.pretrain.deepspeed_worker", str(root / "jobs.json")], 2)
    assert status == 0, output
    convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    for stage in (2, 3):
        done = subprocess.run(
            [
                *(*convert, "--num_extract_workers", "1", "--num_merge_workers", "1"),
                *("--input_folder", str(root / f"gpt2-{stage}/global_step{SAVE_AT}")),
                *("--output_folder", str(root / f"universal-{stage}/global_step{SAVE_AT}")),
            ],
            env=environment(DS_ACCELERATOR="cpu"),
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
    return Trained(config, root)


def overrides(name: str, run_dir: Path) -> list[str]:
    kind = next((job for job in JOBS if job.name == name), JOBS[0])
    return [*kind.overrides, f"run.dir={run_dir}"]


@pytest.fixture(scope="module")
def went_on(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run imported, and trained to the end by Ingot: on one rank, ZeRO-1."""
    root = tmp_path_factory.mktemp("ingot")
    commands = []
    for name in (*GO_ON, "universal-2", "universal-3"):
        arguments = [str(trained.config), *overrides(name, root / name)]
        commands += [
            ["import-deepspeed", str(trained.config), str(trained.root / name), *arguments[1:]],
            arguments,
        ]
    (root / "jobs.json").write_text(json.dumps(commands))
    status, output = run(
        ["-m", "tests.pretrain.ingot_worker", "pretrain", str(root / "jobs.json")], 1
    )
    assert status == 0, output
    assert output.count("status 0\n") == len(commands), output
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", [*GO_ON, "universal-2", "universal-3"])
def test_the_next_steps_are_those_of_deepspeed(trained: Trained, went_on: Path, name: str) -> None:
    records = read_metrics(went_on / name / "metrics.jsonl")
    ours = {r["step"]: r["loss"] for r in records if "loss" in r}
    theirs = trained.losses(name.replace("universal", "gpt2"))
    assert list(ours) == list(range(SAVE_AT + 1, LAST + 1))
    assert ours == pytest.approx({step: theirs[step] for step in ours}, rel=1e-6)
    assert abs(theirs[SAVE_AT] - theirs[LAST]) > 1e-2  # it learns meanwhile


@pytest.mark.slow
@pytest.mark.parametrize("name", [job.name for job in JOBS if job.stage])
def test_weights_are_those_of_zero_to_fp32(trained: Trained, name: str) -> None:
    source = open_checkpoint(trained.root / name)
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(trained.root / name))
    assert source.step == source.optimizer_steps == SAVE_AT
    copies = {"lm_head.weight"} if "gpt2" in name or "frozen" in name else set()
    assert set(source.shapes) == set(theirs) - copies - {"extra"}
    for parameter, shape in source.shapes.items():
        mine = source.read(parameter, "master")
        assert tuple(mine.shape) == shape
        assert torch.equal(mine, theirs[parameter]), parameter
    is_frozen = name.startswith("frozen")
    assert source.frozen == (("transformer.wpe.weight",) if is_frozen else ())


@pytest.mark.slow
def test_an_export_is_what_zero_to_fp32_gives(
    trained: Trained, went_on: Path, tmp_path: Path
) -> None:
    """Of the same state, in one file and in several, which transformers' loader joins."""
    checkpoint = went_on / "ours-2" / "checkpoints" / f"step_{SAVE_AT:08d}"
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(trained.root / "ours-2"))
    assert export(checkpoint, tmp_path / "one").files == 1
    mine = load_file(tmp_path / "one" / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name
    written = export(checkpoint, tmp_path / "many", max_shard_bytes=5000)
    assert written.files > 3
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(theirs)
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "many" / file)[name], theirs[name])
    with pytest.raises(UserError, match="exists already"):
        export(checkpoint, tmp_path / "many")
    weights = went_on / "ours-2" / "checkpoints" / f"step_{LAST:08d}" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="sha256 differs"):
        export(weights.parent, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2-3", "llama-2"])
def test_an_export_in_fp32_opens_with_transformers(
    trained: Trained, went_on: Path, tmp_path: Path, name: str
) -> None:
    checkpoint = went_on / name / "checkpoints" / f"step_{SAVE_AT:08d}"
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(trained.root / name))
    for out, size in ((tmp_path / "one", 10**9), (tmp_path / "many", 5000)):
        export_fp32(checkpoint, out, size)
        net = AutoModelForCausalLM.from_pretrained(out)
        assert net.dtype == torch.float32
        for parameter, tensor in net.state_dict().items():
            assert torch.equal(tensor, theirs[parameter]), parameter
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert export_fp32(went_on / name, tmp_path / "newest").tensors > 0
    with pytest.raises(UserError, match="exists already"):
        export_fp32(checkpoint, tmp_path / "one")


@pytest.mark.slow
def test_moments_are_the_same_in_every_layout(trained: Trained) -> None:
    """Stage 0 keeps them as torch does; the others cut, pad and join them."""
    plain = open_checkpoint(trained.root / "gpt2-0")
    for name in ("gpt2-1", "gpt2-2", "gpt2-3", "universal-2", "universal-3"):
        other = open_checkpoint(trained.root / name)
        assert other.shapes == plain.shapes
        for parameter in plain.shapes:
            for key in ("exp_avg", "exp_avg_sq"):
                expected, got = plain.read(parameter, key), other.read(parameter, key)
                assert float(expected.norm()) > 0
                torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-7)
    frozen = open_checkpoint(trained.root / "frozen-3")
    assert not frozen.read("transformer.wpe.weight", "exp_avg").any()


@pytest.mark.slow
def test_an_import_is_a_whole_checkpoint(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["import-deepspeed", str(trained.config), str(trained.root / "llama-3")]
    arguments += ["--tag", f"global_step{SAVE_AT}", *overrides("llama-3", tmp_path)]
    mask = os.umask(0o022)
    try:
        assert main(arguments) == 0
        found = newest_verified(tmp_path)
        assert found is not None
        assert found.step == SAVE_AT
        assert verify(found.path) == []
        bf16 = tmp_path / "bf16"
        monkeypatch.setattr(deepspeed_import, "_SHARD_BYTES", 3000)
        monkeypatch.setattr(deepspeed_import, "_FILE_BYTES", 5000)
        assert main([*arguments, f"run.dir={bf16}", "precision=bf16"]) == 0
        step = bf16 / "checkpoints" / found.path.name
        assert verify(step) == []
        assert [p.name for p in step.parent.iterdir() if p.name.startswith(".")] == []
        assert len(list((step / "training").glob("*.safetensors"))) > 3
        shards = sorted(step.glob("model-*.safetensors"))
        assert len(shards) > 3
        rounded = {k: v for shard in shards for k, v in load_file(shard).items()}
        assert {t.dtype for t in rounded.values()} == {torch.bfloat16}
        assert main(["export-fp32", str(bf16), str(tmp_path / "fp32")]) == 0
        theirs = get_fp32_state_dict_from_zero_checkpoint(str(trained.root / "llama-3"))
        for name, tensor in load_file(tmp_path / "fp32" / "model.safetensors").items():
            assert torch.equal(tensor, theirs[name])
            assert torch.equal(tensor.bfloat16(), rounded[name])
        assert main(arguments) == 2  # it would stand beside another run's
        assert main([*arguments, f"run.dir={tmp_path / 'x'}", "model.d_ff=44"]) == 2
        assert main([*arguments, f"run.dir={tmp_path / 'x'}", "--tag=../llama-3"]) == 2
        assert main([*arguments, f"run.dir={tmp_path / 'x'}", "--tag=none"]) == 2
        assert main([*arguments, f"run.dir={tmp_path / 'x'}", "optim.name=muon"]) == 2
        assert not (tmp_path / "x").exists()
    finally:
        os.umask(mask)


@pytest.mark.slow
def test_what_is_missing_or_of_another_run_is_refused(trained: Trained, tmp_path: Path) -> None:
    import shutil

    def copied(name: str) -> Path:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return Path(shutil.copytree(trained.root / name, tmp_path / "copy"))

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            open_checkpoint(tmp_path / "copy")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    step = f"global_step{SAVE_AT}"
    for name, part, words in (
        ("llama-2", "zero_pp_rank_1_mp_rank_00_optim_states.pt", "is of 2 ranks"),
        ("llama-2", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "some ranks are missing"),
        ("llama-2", "mp_rank_00_model_states.pt", "no …_model_states.pt"),
        ("llama-3", "zero_pp_rank_1_mp_rank_00_model_states.pt", "is of 2 ranks"),
    ):
        (copied(name) / step / part).unlink()
        assert words in refusal()
    copied("llama-2")
    shutil.copy(
        tmp_path / "copy" / step / "mp_rank_00_model_states.pt",
        tmp_path / "copy" / step / "mp_rank_01_model_states.pt",
    )
    assert "tensor-parallel" in refusal()
    (copied("llama-2") / "latest").unlink()
    assert "--tag" in refusal()
    (tmp_path / "copy" / "latest").write_text("../llama-3/global_step4")
    assert "expected the name of a directory" in refusal()
