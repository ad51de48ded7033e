"""Blocks are compiled once, whatever the batch; what that took is kept, and told."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from model import build, float8, preset
from model.init import parameter_groups
from model.transformer import Block
from runtime import compilation, dist, hardware, heap, sections
from runtime.compilation import Compilation
from runtime.deepspeed_config import deepspeed_config
from runtime.engine import Engine
from runtime.optim import build_optimizer
from tests.processes import run

Write = Callable[..., Path]
SEQ_LEN, ROWS = 32, 4
# Small parameters are cut too, and gathered anew for each pass.
CUT_ALL = {
    "zero_optimization": {
        "stage3_param_persistence_threshold": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_max_live_parameters": 0,
        "stage3_prefetch_bucket_size": 0,
    }
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def ranks() -> Iterator[dist.Ranks]:
    yield dist.init("cpu", timeout_s=60)
    dist.shutdown()


def batches() -> list[dict[str, torch.Tensor]]:
    """Packed rows whose documents differ in number and length from batch to batch."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(4):
        ids = torch.randint(0, 100, (ROWS, SEQ_LEN), generator=generator)
        cuts = torch.randint(1, ROWS * SEQ_LEN, (3 * step,), generator=generator).tolist()
        bounds = torch.tensor(sorted({0, ROWS * SEQ_LEN, *cuts}), dtype=torch.int32)
        found.append({"input_ids": ids, "targets": ids, "cu_seqlens": bounds})
    return found


def losses(
    ranks: dist.Ranks,
    stage: Any,
    recompute: Any,
    apply: Callable[[nn.Module], None],
    precision: Any = "fp32",
) -> list[float]:
    torch.manual_seed(0)
    net = build(preset("llama-tiny", n_layers=10, d_model=32, n_heads=2, n_kv_heads=2, d_ff=48))
    net.trunk.set_recompute(recompute)
    net.trunk.splits_documents = False
    if precision == "fp8":
        float8.use_in(net.trunk, emulate=True)
    apply(net)
    settings = deepspeed_config(
        sections.Parallel(zero_stage=stage),
        precision,
        micro_batch_size=ROWS,
        accumulation_steps=1,
        world_size=1,
        max_grad_norm=1.0,
        device_type="cpu",
        extra=CUT_ALL,
    )
    optimizer = build_optimizer(parameter_groups(net, 0.1), sections.Optim())
    engine = Engine(net, optimizer, settings, ranks, gathered_whole=[Block])
    return [
        engine.train_step([batch], lambda module, b: module(**b).loss, 1e-2).loss
        for batch in batches()
    ]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("recompute", ["none", "block", "attention", "mlp"])
def test_one_graph_for_all_layers_and_batches(
    ranks: dist.Ranks, stage: int, recompute: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """More layers than the compiler tries shapes (8), after which it gives up without a word."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compile_(f, backend="aot_eager"))
    monkeypatch.setattr("runtime.compilation._why_not", lambda device: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    given_back: list[int] = []
    monkeypatch.setattr(heap, "give_back", lambda: given_back.append(1))
    one = Compilation(tmp_path, ranks, is_wanted=True)
    compiled = losses(ranks, stage, recompute, lambda net: one.apply(net.trunk.blocks))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert compiled == pytest.approx(losses(ranks, stage, recompute, lambda net: None), rel=1e-6)
    news = one.news()
    assert news is not None
    assert (news.graphs, news.saved_s, news.is_first) == (1, None, True)
    assert news.seconds > 0
    assert one.news() is None, "told twice"
    assert len(given_back) == 1, "the heap is given back after compiling, and not at each step"


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("recompute", ["none", "block"])
def test_one_graph_in_fp8_too(ranks: dist.Ranks, stage: int, recompute: str) -> None:
    """Each layer has its own function for each of its maps, outside of the module tree."""
    pytest.importorskip("torchao")

    def compile_blocks(net: nn.Module) -> None:
        for block in net.trunk.blocks:
            block.forward = torch.compile(block.forward, backend="aot_eager")

    compiled = losses(ranks, stage, recompute, compile_blocks, "fp8")
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    eager = losses(ranks, stage, recompute, lambda net: None, "fp8")
    assert compiled == pytest.approx(eager, rel=1e-2)
    assert compiled != pytest.approx(losses(ranks, stage, recompute, compile_blocks, "bf16"), 1e-5)


def events(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == "compile"]


def trained(run_dir: Path) -> dict[int, float]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in lines if "loss" in record}


@pytest.mark.slow
def test_a_second_start_takes_what_the_first_compiled(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it when it compiles
    path = write_config(compile=True, steps=8, model__dropout=0.0, schedule__kind="constant")
    for steps in (4, 8):
        status, output = run(["-m", "pretrain", str(path), f"steps={steps}"])
        assert status == 0, output
        told = "s less than without" if steps == 8 else "for the next start"
        assert "compiled 3 graphs in " in output  # of blocks, loss and update
        assert told in output
    run_dir = tmp_path / "run"
    assert any(run_dir.glob("compile/cpu-*/fxgraph/*"))
    first, second = (e for e in events(run_dir) if e["step"] in (1, 5))  # beside evaluations
    assert first["saved_s"] is None
    assert second["seconds"] < first["seconds"]
    assert second["saved_s"] == pytest.approx(first["seconds"] - second["seconds"])
    eager = write_config(
        run__dir=str(tmp_path / "eager"), steps=8, model__dropout=0.0, schedule__kind="constant"
    )
    assert run(["-m", "pretrain", str(eager)])[0] == 0
    assert trained(run_dir)[8] == pytest.approx(trained(tmp_path / "eager")[8], rel=1e-3)


def test_each_kind_of_machine_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch would run code made for 16 numbers at a time where there is room for 8."""
    cpu, found = torch.device("cpu"), set()
    for capability in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        for flags in (["avx2"], ["avx2", "amx_bf16"]):
            monkeypatch.setattr(hardware, "cpu_flags", lambda flags=flags: flags)
            found.add(compilation._kind_of_machine(cpu))
    assert len(found) == 4


def test_a_compiler_that_computes_wrong_numbers_is_not_used(
    ranks: dist.Ranks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: function(x) + 1)
    found = Compilation(tmp_path, ranks, is_wanted=True)
    assert (found.is_on, found.problem) == (False, "it computes wrong numbers")


@pytest.mark.parametrize("order", [(2, 1, 1, 2), (1, 2)])
def test_a_start_is_compared_with_one_that_had_no_cache(
    order: tuple[int, ...], ranks: dist.Ranks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of as many graphs: a start that finds all in the cache never counts as the first."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compilation, "_why_not", lambda device: None)
    cold: dict[int, float] = {}
    for number, graphs in enumerate(order):
        hits = graphs if graphs in cold or number > 1 else 0
        seconds = 5.0 if hits else 40.0 * graphs
        count = compilation._Counted(0, 0.0, 0)
        monkeypatch.setattr(compilation, "_counted", lambda count=count: count)
        start = Compilation(tmp_path, ranks, is_wanted=True)
        count = compilation._Counted(graphs, seconds, hits)
        monkeypatch.setattr(compilation, "_counted", lambda count=count: count)
        monkeypatch.setattr(compilation, "_graphs", lambda graphs=graphs: graphs)
        news = start.news()
        assert news is not None
        if not hits:
            cold[graphs] = seconds
        assert news.is_first == (not hits)
        saved = cold[graphs] - seconds if hits and graphs in cold else None
        assert news.saved_s == saved


def test_without_a_compiler_a_run_goes_on(write_config: Write, tmp_path: Path) -> None:
    path = write_config(compile=True, steps=4)
    status, output = run(["-m", "pretrain", str(path)], CXX="/bin/false")
    assert status == 0, output
    assert "compile: true, and this machine cannot: " in output
    assert "No working C++ compiler" in output
    assert "Traceback" not in output
    assert "message" in events(tmp_path / "run")[0]
