"""Pretraining under ZeRO-3, where no rank ever holds the model whole, against ZeRO-1."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model import build, preset
from model.init import parameter_groups
from model.transformer import Block
from runtime import dist, sections
from runtime.deepspeed_config import deepspeed_config
from runtime.engine import Engine
from runtime.optim import build_optimizer
from tests.processes import run

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def ranks() -> Iterator[dist.Ranks]:
    yield dist.init("cpu", timeout_s=60)
    dist.shutdown()


def new_engine(ranks: dist.Ranks, *, is_tied: bool, is_compiled: bool, kept_whole: int) -> Engine:
    torch.manual_seed(0)
    shape = {"n_layers": 2, "d_model": 32, "n_heads": 2, "vocab_size": 128}
    net = build(preset("llama-tiny", **shape, tie_embeddings=is_tied))
    settings = deepspeed_config(
        sections.Parallel(zero_stage=3),
        "fp32",
        micro_batch_size=4,
        accumulation_steps=1,
        world_size=1,
        max_grad_norm=1.0,
        device_type="cpu",
        extra={"zero_optimization": {"stage3_param_persistence_threshold": kept_whole}},
    )
    for block in net.trunk.blocks if is_compiled else ():
        block.forward = torch.compile(block.forward, backend="aot_eager")
    optimizer = build_optimizer(parameter_groups(net, 0.1), sections.Optim())
    return Engine(net, optimizer, settings, ranks, gathered_whole=[Block] if is_compiled else [])


def step(engine: Engine, number: int) -> float:
    ids = torch.randint(0, 100, (4, 16), generator=torch.Generator().manual_seed(number))
    batch = {"input_ids": ids, "targets": ids}
    return engine.train_step([batch], lambda module, b: module(**b).loss, 1e-2).loss


def between_steps(engine: Engine) -> list[float]:
    """Evaluate, and gather every parameter as a save does."""
    ids = torch.arange(64).view(4, 16)
    with engine.evaluating() as module:
        found = [float(module(input_ids=ids, targets=ids).loss)]
    names = engine.parameter_shapes()
    return found + [float(tensor.double().norm()) for _, tensor in engine.full_parameters(names)]


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("kept_whole", [0, 100_000])  # between steps: parameters no larger
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_restored_engine_goes_on_with_evaluations_and_saves_between_its_steps(
    ranks: dist.Ranks, is_tied: bool, kept_whole: int, is_compiled: bool
) -> None:
    """A new one, and one rolled back: as the one that wrote the state."""

    def go_on(engine: Engine) -> list[list[float]]:
        return [[step(engine, number), *between_steps(engine)] for number in range(2, 5)]

    def restore(engine: Engine) -> Engine:
        engine.load_optimizer_slices(lambda name, key, start, n: held[name, key][start:][:n], 2)
        return engine

    keys: Any = {"is_tied": is_tied, "is_compiled": is_compiled, "kept_whole": kept_whole}
    unbroken = new_engine(ranks, **keys)
    for number in range(2):
        step(unbroken, number)
    held = {(s.parameter, s.key): s.tensor.clone() for s in unbroken.optimizer_slices()}
    found = go_on(unbroken)
    assert go_on(restore(new_engine(ranks, **keys))) == found
    assert go_on(restore(unbroken)) == found


def train(path: Path, *overrides: str) -> tuple[int, str]:
    return run(["-m", "pretrain", str(path), *overrides], 2)


def records(run_dir: Path, key: str) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {r["step"]: r[key] for r in map(json.loads, lines) if key in r}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stage_3_trains_and_resumes_as_stage_1(
    write_config: Write, tmp_path: Path, precision: str
) -> None:
    """From the same first weights; and its second half is the one of the run without a break."""
    found = {}
    for name, stage, stops in (("one", 1, [8]), ("three", 3, [8]), ("again", 3, [4, 8])):
        run_dir = tmp_path / name
        path = write_config(
            run__dir=str(run_dir),
            precision=precision,
            parallel__zero_stage=stage,
            steps=8,
            checkpoint__every_steps=1,
        )
        for stop in stops:
            # Constant: the other schedules depend on the number of steps.
            status, output = train(path, f"steps={stop}", "schedule.kind=constant")
            assert status == 0, output
        found[name] = records(run_dir, "loss"), records(run_dir, "update_ratio")
    assert found["again"] == found["three"]
    for ours, plain in zip(found["three"], found["one"], strict=True):
        assert list(ours) == list(range(1, 9))
        assert ours == pytest.approx(plain, rel=1e-5 if precision == "fp32" else 5e-3)
    # Adam moves a weight by the learning rate, 1e-2, at the most; most of ‖w‖ is the norms'.
    assert all(0.001 < ratio < 0.1 for ratio in found["one"][1].values())


def test_stage_3_refuses_a_checkpoint_of_another_architecture(
    write_config: Write, tmp_path: Path
) -> None:
    path = write_config(parallel__zero_stage=3, steps=4)
    assert train(path)[0] == 0
    status, output = train(path, "steps=6", "model.d_ff=48")
    assert status == 2, output
    assert "of another architecture (model.d_ff: " in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_run_goes_on_under_every_layout(write_config: Write, tmp_path: Path) -> None:
    """Hierarchical partitioning, parameters on the host, one rank: as one run of ZeRO-1."""
    plain = write_config(run__dir=str(tmp_path / "plain"), steps=8, model__dropout=0.0)
    assert train(plain, "schedule.kind=constant")[0] == 0
    path = write_config(run__dir=str(tmp_path / "wide"), steps=8, model__dropout=0.0)
    hpz = ["parallel.sharding=hpz", "parallel.shard_ranks=2"]
    for last, ranks, *keys in (
        (4, 2, "parallel.zero_stage=3", *hpz),
        (5, 2, "parallel.zero_stage=3", *hpz),
        (6, 2, "parallel.zero_stage=3", "parallel.offload=all"),
        (8, 1, "parallel.zero_stage=2", "parallel.offload=optimizer"),
    ):
        words = ["-m", "pretrain", str(path), f"steps={last}", "schedule.kind=constant", *keys]
        status, output = run(words, ranks)
        assert status == 0, output
    for key in ("loss", "update_ratio"):
        found = records(tmp_path / "wide", key)
        assert list(found) == list(range(1, 9))
        assert found == pytest.approx(records(tmp_path / "plain", key), rel=1e-5)


def test_layouts_that_do_not_go_together_are_refused(write_config: Write) -> None:
    path = write_config(parallel__zero_stage=3, parallel__sharding="hpz", parallel__shard_ranks=4)
    status, output = train(path)
    assert status == 2, output
    assert "parallel.shard_ranks: 2 ranks do not split into groups of 4" in output
    assert "Traceback" not in output
