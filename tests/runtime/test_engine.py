import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from runtime.deepspeed_config import OWNED_KEYS, deepspeed_config, owned_keys
from runtime.sections import Parallel
from runtime.selftest import cases
from tests.processes import run


def settings(**keys: Any) -> dict[str, Any]:
    given = {
        "parallel": Parallel(),
        "precision": "bf16",
        "micro_batch_size": 2,
        "accumulation_steps": 3,
        "world_size": 4,
        "max_grad_norm": 1.0,
        "device_type": "cpu",
    }
    return deepspeed_config(**{**given, **keys})


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_engine_trains_as_plain_torch_does(ranks: int, tmp_path: Path) -> None:
    """Every optimizer, stage, precision and accumulation; and no C++ is compiled on the way."""
    extensions = tmp_path / "extensions"
    command = ["-m", "runtime.selftest"]
    status, output = run(command, ranks, timeout=600, TORCH_EXTENSIONS_DIR=str(extensions))
    assert status == 0, output
    assert output.count("ok   ranks") == len(cases(ranks)) == 63 + 3 * ranks
    assert output.count("left out: fp16, which does not run on a CPU") == 1
    assert not extensions.exists()


def test_on_a_gpu_fp16_is_compared_as_well() -> None:
    more = [str(case) for case in cases(1, "cuda") if case not in cases(1)]
    assert len(more) == len(set(more)) == 3 * 3 * 2  # optimizers, stages, accumulation
    assert all("fp16" in case for case in more)


@pytest.mark.parametrize("ranks", [1, 2])
def test_in_fp16_what_overflows_is_skipped_and_lowers_the_loss_scale(ranks: int) -> None:
    """On a CPU, where DeepSpeed's refusal is lifted for it; tests/gpu has the same on a GPU."""
    status, output = run(["tests/runtime/fp16_worker.py"], ranks)
    assert status == 0, output
    assert output.split().count("learns") == 3  # stages


def test_batch_sizes_agree_as_deepspeed_demands() -> None:
    config = settings()
    assert config["train_batch_size"] == 2 * 3 * 4


def test_every_precision_setting_is_written_out() -> None:
    config = settings()
    assert set(DeepSpeedBF16Config.model_fields) <= set(config["bf16"])
    assert set(DeepSpeedFP16Config.model_fields) - {"fp16_master_weights_and_grads"} <= set(
        config["fp16"]
    )


def test_the_loss_scale_of_fp16_is_dynamic_and_no_other_has_one() -> None:
    scaled = settings(precision="fp16")
    assert scaled["fp16"]["enabled"]
    assert not scaled["bf16"]["enabled"]
    assert scaled["fp16"]["loss_scale"] == 0  # DeepSpeed's word for dynamic
    assert not any(settings(precision=p)["fp16"]["enabled"] for p in ("fp32", "bf16", "fp8"))


def test_every_zero_setting_is_written_out() -> None:
    """A new setting of DeepSpeed's fails here: decide on it instead of taking its default."""
    unused = {
        "cpu_offload",
        "cpu_offload_param",
        "cpu_offload_use_pin_memory",  # deprecated spellings of offload_*
        "compute_grad_norm",
        "elastic_checkpoint",
        "enable_sanity_checks",
        "gather_16bit_weights_on_model_save",
        "leaf_module",
        "log_trace_cache_warnings",
        "model_persistence_threshold",
        "module_granularity_threshold",
        "offload_optimizer",
        "offload_param",
        "override_module_apply",
        "parameter_alignment",
        "pipeline_loading_checkpoint",
        "save_muon_momentum_buffer_in_memory",
        "stage3_gather_fp16_weights_on_model_save",
        "use_all_reduce_for_fetch_params",
        "allgather_sequential",
        "zenflow",
        "zero_quantized_nontrainable_weights",
    }
    written = {name.removeprefix("stage3_") for name in settings()["zero_optimization"]}
    assert set(DeepSpeedZeroConfig.model_fields) - written - unused == set()


def test_extra_is_merged_last_and_deeply() -> None:
    config = settings(extra={"zero_optimization": {"reduce_bucket_size": 7}, "dump_state": True})
    assert config["zero_optimization"]["reduce_bucket_size"] == 7
    assert config["zero_optimization"]["stage"] == 1
    assert config["dump_state"] is True


@pytest.mark.parametrize(
    ("stage", "world_size", "parameters", "bucket"),
    [
        (1, 1, 10**9, 1),  # nothing is sent: the copies alone would count
        (2, 1, 1000, 1),
        (0, 1, 10**9, 500_000_000),  # as DeepSpeed has it there, whatever is asked for
        (3, 1, 10**9, 500_000_000),
        (1, 2, 10**9, 500_000_000),
        (1, 2, 1000, 1000),
    ],
)
def test_buckets_are_no_larger_than_it_pays(
    stage: int, world_size: int, parameters: int, bucket: int
) -> None:
    parallel = Parallel(zero_stage=stage)
    config = settings(parallel=parallel, world_size=world_size, parameters=parameters)
    assert config["zero_optimization"]["reduce_bucket_size"] == bucket


def test_a_process_may_have_one_engine_after_another() -> None:
    """DeepSpeed's globals must not keep groups of an engine that has gone."""
    script = """
import torch
from runtime import dist
from runtime.engine import Engine
from runtime.errors import leave
from tests.runtime.test_engine import settings
for stage in (1, 3):
    ranks = dist.init("cpu", timeout_s=60)
    net = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(net.parameters())
    keys = {"world_size": 1, "accumulation_steps": 1, "precision": "fp32"}
    Engine(net, optimizer, settings(**keys, extra={"zero_optimization": {"stage": stage}}), ranks)
    dist.shutdown()
print("both")
leave(0)
"""
    status, output = run(["-c", script])
    assert status == 0, output
    assert output.split()[-1] == "both"


def test_owned_keys_are_found_at_any_depth() -> None:
    extra = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 7}, "gradient_clipping": 3}
    assert dict(owned_keys(extra)) == {
        "zero_optimization.stage": "parallel.zero_stage",
        "gradient_clipping": "optim.max_grad_norm",
    }
    assert set(OWNED_KEYS) >= {"train_batch_size", "optimizer", "scheduler"}


def test_the_configuration_is_plain_json() -> None:
    assert json.loads(json.dumps(settings())) == settings()


def test_an_engine_starts_without_the_compiler() -> None:
    """DeepSpeed's own Muon would load it, for a second."""
    script = (
        "import sys; from torch import nn; from runtime import dist;"
        " from runtime.engine import Engine; from runtime.optim import build_optimizer;"
        " from runtime.errors import leave; from runtime.sections import Optim;"
        " from tests.runtime.test_engine import settings;"
        " net = nn.Linear(2, 2); groups = [{'params': list(net.parameters())}];"
        " one = settings(world_size=1, accumulation_steps=1);"
        " Engine(net, build_optimizer(groups, Optim()), one, dist.init('cpu', 60));"
        " print('torch._inductor.compile_fx' in sys.modules); leave(0)"
    )
    status, output = run(["-c", script])
    assert status == 0, output
    assert output.split()[-1] == "False"
