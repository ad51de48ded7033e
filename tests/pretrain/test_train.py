"""Whole runs, started as users start them, with what they write held against each other."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.shards import Shards
from model import load_pretrained
from runtime.checkpoint import list_checkpoints, verify
from runtime.errors import EXIT_IO
from runtime.records import read_metrics
from tests.processes import run, start_ranks

Write = Callable[..., Path]


def losses(run_dir: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(run_dir / "metrics.jsonl") if "loss" in r}


def train(path: Path, *overrides: str, ranks: int = 1) -> tuple[int, str]:
    return run(["-m", "pretrain", str(path), *overrides], ranks)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {}


@pytest.fixture
def finished(write_config: Write, tmp_path: Path, straight: dict[str, Any]) -> Path:
    """The run directory of twelve steps without a break; trained once for the module."""
    if not straight:
        status, output = train(write_config(run__dir=str(tmp_path / "first")))
        assert status == 0, output
        straight["dir"] = (tmp_path / "first").rename(tmp_path.parent / "straight")
    return straight["dir"]


def test_a_run_writes_what_it_should(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names == {
        *("checkpoints", "config.yaml", "health", "metrics.jsonl", "tensorboard", "versions.json"),
        *(".lock", "clock.jsonl", "data_order.json", "verified_data.json"),
    }
    assert "deepspeed" in json.loads((finished / "versions.json").read_text())
    records = read_metrics(finished / "metrics.jsonl")
    steps = [r for r in records if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 13))
    for record in steps:
        assert record["tokens_seen"] == record["step"] * 256
        for key in ("lr", "grad_norm", "tokens_per_second", "memory_bytes"):
            assert record[key] > 0
        assert record["mfu"] is None  # a CPU's peak is not known: never a guess
    assert [r["step"] for r in records if "valid_loss" in r] == [6, 12]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5


def test_checkpoints_are_whole_and_pruned(finished: Path) -> None:
    found = list_checkpoints(finished / "checkpoints")
    assert [info.step for info in found] == [8, 12]
    assert [verify(info.path) for info in found] == [[], []]


def test_transformers_opens_every_step_and_agrees_on_the_validation_loss(
    finished: Path, corpus: Path
) -> None:
    path = finished / "checkpoints" / "step_00000012"
    tokenizer = AutoTokenizer.from_pretrained(path)
    theirs = AutoModelForCausalLM.from_pretrained(path).eval()
    ours = load_pretrained(path)
    assert tokenizer.decode(tokenizer("the cat sees.")["input_ids"]) == "the cat sees."
    valid = Shards(corpus, "valid")
    total, count = 0.0, 0
    for start in range(0, min(valid.tokens, 24 * 32), 32):
        ids = torch.from_numpy(valid.read(start, 33)).long()[None]
        with torch.no_grad():
            logits = theirs(ids[:, :-1]).logits
            assert torch.allclose(logits, ours(ids[:, :-1]).logits, atol=1e-5)
        total += float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    records = read_metrics(finished / "metrics.jsonl")
    recorded = [r["valid_loss"] for r in records if "valid_loss" in r]
    assert recorded[-1] == pytest.approx(total / count, rel=1e-5)


def wait_for_step(run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while max(losses(run_dir), default=0) < step:
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -9)]
)
def test_stopped_and_run_again_equals_uninterrupted(
    write_config: Write, tmp_path: Path, finished: Path, number: int, status: int
) -> None:
    """Twelve steps with dropout, accumulation and warm-up, stopped anywhere: equal to the bit."""
    path, run_dir = write_config(), tmp_path / "run"
    (process,) = start_ranks(["-m", "pretrain", str(path)])
    wait_for_step(run_dir, 5)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode in (status, 0), output  # 0: it was faster than the signal
    if process.returncode == 75:
        assert "run the same command again" in output
    status, output = train(path)
    assert status == 0, output
    assert losses(run_dir) == losses(finished)
    first, second = (d / "checkpoints" / "step_00000012" for d in (run_dir, finished))
    weights = [(d / "model.safetensors").read_bytes() for d in (first, second)]
    assert weights[0] == weights[1]


def test_two_ranks_see_the_same_samples(
    write_config: Write, tmp_path: Path, finished: Path
) -> None:
    """Without dropout, whose draws belong to a rank, one and two ranks compute the same."""
    one = write_config(model__dropout=0.0, run__dir=str(tmp_path / "one"), steps=6)
    assert train(one)[0] == 0
    two = write_config(model__dropout=0.0, run__dir=str(tmp_path / "two"), steps=6)
    status, output = train(two, ranks=2)
    assert status == 0, output
    expected = losses(tmp_path / "one")
    assert losses(tmp_path / "two") == {s: pytest.approx(v, rel=1e-6) for s, v in expected.items()}


def test_a_run_continues_on_other_ranks_and_stage(write_config: Write, tmp_path: Path) -> None:
    keys = {"model__dropout": 0.0, "steps": 8}
    whole = write_config(**keys, run__dir=str(tmp_path / "whole"))
    assert train(whole)[0] == 0
    parts = write_config(**keys, run__dir=str(tmp_path / "parts"))
    (process,) = start_ranks(["-m", "pretrain", str(parts)])
    wait_for_step(tmp_path / "parts", 4)
    process.kill()
    process.wait()
    status, output = train(parts, "parallel.zero_stage=3", ranks=2)
    assert status == 0, output
    expected = losses(tmp_path / "whole")
    assert losses(tmp_path / "parts") == {
        s: pytest.approx(v, rel=1e-6) for s, v in expected.items()
    }


def test_a_finished_run_says_so(
    write_config: Write, tmp_path: Path, finished: Path, corpus: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (corpus / ".lock").touch()  # as `data_prep run` does when it finds everything done
    status, output = train(write_config())
    assert "verifying" not in output  # the run hashed the same files before
    assert (status, "already finished: 12 of 12 steps" in output) == (0, True)
    assert losses(tmp_path / "run") == losses(finished)


def test_a_damaged_checkpoint_is_passed_over(
    write_config: Write, tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step_00000012" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    status, output = train(write_config())
    assert status == 0, output
    assert "checkpoint passed over" in output
    assert "resumed from" in output
    assert "step 8" in output
    assert losses(tmp_path / "run") == losses(finished)


def test_a_second_run_in_the_same_directory_is_refused(write_config: Write, tmp_path: Path) -> None:
    path = write_config(steps=100_000, checkpoint__every_steps=0, evaluate__every_steps=0)
    (first,) = start_ranks(["-m", "pretrain", str(path)])
    try:
        wait_for_step(tmp_path / "run", 2)
        status, output = train(path)
        assert status == 1
        assert f"process {first.pid} is training here" in output
        assert "Traceback" not in output
    finally:
        first.kill()
        first.communicate()
    assert train(path, "steps=4")[0] == 0  # its lock went with it


def test_another_architecture_is_refused(
    write_config: Write, tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    status, output = train(write_config(model__d_ff=48, steps=20))
    assert status == 2
    assert "another architecture (model.d_ff:" in output
    assert "Traceback" not in output


def test_changed_data_is_refused(
    write_config: Write, tmp_path: Path, finished: Path, corpus: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    changed = Path(shutil.copytree(corpus, tmp_path / "changed"))
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["fingerprint"] = "0" * len(manifest["fingerprint"])
    (changed / "manifest.json").write_text(json.dumps(manifest))
    path = write_config(data__train=str(changed), steps=20)
    status, output = train(path)
    assert status == 2
    assert "fingerprint" in output
    status, output = train(path, "data.verify=false")  # then the loader finds it
    assert status == 2
    assert "cannot resume: the data was" in output
    assert "Traceback" not in output


def test_documents_packing_trains(write_config: Write, tmp_path: Path) -> None:
    status, output = train(write_config(data__packing="documents", steps=6))
    assert status == 0, output
    values = losses(tmp_path / "run")
    assert values[6] < values[1]


@pytest.mark.parametrize("stage", [1, 3])
def test_activation_checkpointing_changes_no_loss(
    write_config: Write, tmp_path: Path, finished: Path, stage: int
) -> None:
    """With dropout, accumulation and tied embeddings; the recomputed pass draws the same masks."""
    keys = {"model__tie_embeddings": True, "steps": 4, "parallel__zero_stage": stage}
    found = []
    for name, value in (("kept", False), ("again", True)):
        run_dir = tmp_path / name
        path = write_config(**keys, run__dir=str(run_dir), parallel__activation_checkpointing=value)
        status, output = train(path)
        assert status == 0, output
        found.append(losses(run_dir))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_damaged_data_is_refused_before_the_first_step(
    write_config: Write, tmp_path: Path, corpus: Path
) -> None:
    damaged = Path(shutil.copytree(corpus, tmp_path / "damaged"))
    shard = next(damaged.glob("train*.bin"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    status, output = train(write_config(data__train=str(damaged)))
    assert status == 2  # no supervisor starts such a run again
    assert shard.name in output
    assert "Traceback" not in output
    assert not losses(tmp_path / "run")


def test_a_full_disk_ends_the_run_with_a_line_and_the_last_checkpoint_whole(
    write_config: Write, tmp_path: Path, finished: Path
) -> None:
    """The process may write no file beyond a few kilobytes: writing the save fails."""
    shutil.copytree(finished, tmp_path / "run")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from pretrain.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["-c", code, str(write_config(steps=14)), "log.tensorboard=false"]
    # Bytecode would be cut at the limit, and no later process could import it.
    status, output = run(words, PYTHONDONTWRITEBYTECODE="1")
    assert status == EXIT_IO, output
    assert output.count("step 14 not saved yet") == 3
    assert "optimizer_00000.safetensors" in output
    assert "step 14 could not be saved: [Errno 27] File too large" in output
    assert "step 12 is intact" in output
    assert "Traceback" not in output
    found = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [info.step for info in found] == [8, 12]
    assert [verify(info.path) for info in found] == [[], []]


def test_a_diverged_run_stops_before_it_saves(write_config: Write, tmp_path: Path) -> None:
    path = write_config(optim__lr=3e38, optim__max_grad_norm=0, model__dropout=0.0)
    status, output = train(path, "schedule.warmup_steps=0")
    assert status == 1
    assert "training diverged" in output
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_changed_settings_are_told_on_resume(
    write_config: Write, tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    status, output = train(write_config(steps=13, optim__lr=0.02))
    assert status == 0, output
    assert "changed: optim.lr was 0.01, now 0.02" in output
