"""The sweep of one GPU runs from end to end on tiny shapes, part by part."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.h200 import DRY_PARTS, MINUTES, PARTS, rows_of, run_part
from benchmarks.sweep.attention import _rates
from benchmarks.sweep.engine_step import config_of
from benchmarks.sweep.models import DRY_MODELS, MODELS, Model
from benchmarks.sweep.prepared import Prepared, Variant
from benchmarks.sweep.steps import head_times, kind_of
from benchmarks.sweep.timing import TURNS, Times, alternate
from model import build
from pretrain.objectives.traits import layout_for
from tests.processes import run

CPU = torch.device("cpu")
MEASURED = ("tokens_per_second", "step_ms", "step_min_ms", "head_alone_ms", "head_alone_min_ms")


def dry_run(folder: Path, *words: str, timeout: float = 240, **extra: str) -> dict[str, Any]:
    """The parts of a dry run."""
    status, output = run(
        ["benchmarks/h200.py", "--dry-run", "--results", str(folder), *words],
        timeout=timeout,
        **extra,
    )
    assert status == 0, output
    parts: dict[str, Any] = json.loads((folder / "h200_dry.json").read_text())["parts"]
    return parts


def check_step(row: dict[str, Any]) -> None:
    """All that a CPU can measure is there."""
    assert all(0 < row[key] < math.inf for key in MEASURED), row
    assert row["step_min_ms"] <= row["step_ms"]
    assert row["turns"] == len(row["step_turns_s"]) == TURNS >= 9
    assert sum(row["shares"].values()) == pytest.approx(1)


def numbers_of(value: Any) -> list[float]:
    """All numbers in a table."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for one in inner for number in numbers_of(one)]
    return [value] if isinstance(value, int | float) else []


def test_kinds_of_kernels_by_their_names() -> None:
    assert kind_of("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT") == "gemm"
    assert kind_of("pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel") == "attention"
    assert kind_of("triton_poi_fused_addmm_gelu_3") == "elementwise"  # reads what a product made
    assert kind_of("triton_per_fused__scaled_dot_product_attention_1") == "elementwise"
    assert kind_of("triton_poi_fused_addcmul_lerp_0") == "optimizer"


def test_a_rate_that_noise_hides_is_none() -> None:
    found = _rates(Times([2.0, 5.0, 4.0]), Times([4.0, 2.0, 1.0]), 10**12)
    assert (found["forward_tflops"], found["forward_tflops_best"]) == (0.25, 0.5)
    assert found["backward_tflops"] is None, "-3 s by the turns' median"
    assert found["backward_tflops_best"] is None
    found = _rates(Times([1.0, 1.0, 1.0]), Times([3.0, 3.0, 6.0]), 10**12)
    assert (found["backward_tflops"], found["backward_tflops_best"]) == (1.25, 1.25)


def test_a_part_that_there_is_not_is_refused(tmp_path: Path) -> None:
    words = ["benchmarks/h200.py", "--parts", "gem", "--results", str(tmp_path)]
    status, output = run(words, timeout=60)
    assert status == 2
    assert "--parts: no gem; there are gemm, " in output


def test_calls_take_turns() -> None:
    order = ""

    def note(name: str) -> None:
        nonlocal order
        order += name

    calls = {name: (lambda name=name: note(name)) for name in "abc"}
    found = alternate(calls, CPU)
    assert order == "aabbcc" + "abcbcacab" * 3
    assert all(len(times.turns) == 9 for times in found.values())
    assert all(times.minimum <= times.median for times in found.values())
    assert all(len(times.turns) == 1 for times in alternate(calls, CPU, until=0).values())


def test_the_parts_fit_into_less_than_nine_minutes() -> None:
    assert sum(PARTS.values()) + 5 <= 60 * MINUTES < 60 * 9 - 10


@pytest.mark.parametrize("model", [*MODELS, *DRY_MODELS], ids=lambda model: model.name)
def test_the_config_of_a_step_is_the_model_s(model: Model) -> None:
    config = config_of(model, Variant(4, "block", model.kernels[-1]))
    assert config.model_config_alone() == model.config()
    assert config.compile
    assert config.tokens_per_step == 4 * model.seq_len
    assert (layout_for(config).packing != "concat") == (model.document > 0)


@pytest.mark.parametrize("model", DRY_MODELS, ids=lambda model: model.name)
def test_the_head_of_a_swept_model_is_timed(model: Model) -> None:
    net = build(model.config(), model.head)
    prepared = Prepared(lambda: None, net, model.batch(2, CPU), {})
    assert head_times(prepared, CPU).minimum > 0
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_part_reports_its_rows(tmp_path: Path) -> None:
    found = dry_run(tmp_path, "--parts", "gemm")["gemm"]
    assert found["status"] == 0
    assert len(found["rows"]) == 21
    assert all(row["turns"] == 9 for row in found["rows"])
    assert all(
        row["tflops_best"][k] >= v > 0 for row in found["rows"] for k, v in row["tflops"].items()
    )
    found = dry_run(tmp_path, "--parts", "gemm", "--minutes", "0")["gemm"]
    assert found["status"] == "no time was left"


def test_a_part_that_takes_too_long_is_ended() -> None:
    options = argparse.Namespace(dry_run=True, peers=None, without=[])
    found = run_part("attention", 0.3, options)
    assert found["status"] == "time is over"
    assert found["rows"] == []


def test_a_part_whose_time_is_over_says_what_it_left_out() -> None:
    for part, left in (("gemm", "21 shapes"), ("attention", "4 shapes")):
        (row,) = rows_of(part, 0.0, is_dry=True)
        assert row == {"left_out": f"{left}: the part's time was over"}


@pytest.mark.slow  # it compiles
def test_steps_are_swept_through_the_engine(tmp_path: Path) -> None:
    rows = dry_run(tmp_path, "--parts", "steps:124M")["steps:124M"]["rows"]
    check_step(rows[0])
    assert (rows[0]["engine"], rows[0]["compiled"]) == ("ZeRO-1", "yes")
    assert [row["kernels"] for row in rows] == ["torch", "triton"]
    assert "expected a GPU" in rows[1]["left_out"]
    assert (tmp_path / "h200_dry.svg").stat().st_size > 1000


def test_steps_are_swept_without_deepspeed_and_without_a_compiler(tmp_path: Path) -> None:
    words = ["--without", "deepspeed,orjson,matplotlib", "--parts", "steps:BERT-base"]
    (row,) = dry_run(tmp_path, *words, CXX="/nowhere")["steps:BERT-base"]["rows"]
    check_step(row)
    assert row["engine"] == "none, without DeepSpeed (no deepspeed)"
    assert row["compiled"].startswith("no: ")


@pytest.mark.nightly  # minutes: each step compiles
@pytest.mark.timeout(900)
def test_steps_are_compiled_without_deepspeed_too(tmp_path: Path) -> None:
    words = ["--without", "deepspeed", "--parts", "steps:124M,steps:7B,steps:BERT-base"]
    parts = dry_run(tmp_path, *words, timeout=550)
    for part in parts.values():
        check_step(part["rows"][0])
        assert part["rows"][0]["compiled"] == "yes"


@pytest.mark.nightly  # minutes: each step compiles
@pytest.mark.timeout(1800)
def test_the_whole_sweep(tmp_path: Path) -> None:
    parts = dry_run(tmp_path, "--minutes", "25", timeout=1700)
    assert tuple(parts) == DRY_PARTS
    assert set(DRY_PARTS) <= set(PARTS)
    for name, part in parts.items():
        assert part["status"] == 0, (name, part)
        assert all(map(math.isfinite, numbers_of(part["rows"])))
        done = [row for row in part["rows"] if not {"failed", "left_out"} & row.keys()]
        assert done, name
        assert all(row.get("turns", 9) == 9 for row in done)
        assert all(len(row.get("turns_ms", [0] * 9)) == 9 for row in done)
        if name.startswith("steps:"):
            check_step(done[0])
            assert done[0]["compiled"] == "yes"
    assert len(parts["gemm"]["rows"]) == 21
    assert {row["sees"] for row in parts["attention"]["rows"]} == {"causal", "documents", "prefix"}
