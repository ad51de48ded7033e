"""DeepSpeed's configuration, generated from ours. Torch-free.

Every setting is written out, because DeepSpeed's defaults have changed silently between releases
(gradient_clipping, the bf16 overflow check, the process group's timeout).
"""

from collections.abc import Iterator
from typing import Any

from runtime.sections import Parallel, Precision, held_as

# DeepSpeed's key → ours: these can't be set through `deepspeed.extra`.
OWNED_KEYS = {
    "train_batch_size": "batch.global_batch_size",
    "train_micro_batch_size_per_gpu": "batch.micro_batch_size",
    "gradient_accumulation_steps": "batch.global_batch_size and batch.micro_batch_size",
    "gradient_clipping": "optim.max_grad_norm",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer": "parallel.offload",
    "zero_optimization.offload_param": "parallel.offload",
    "zero_optimization.zero_hpz_partition_size": "parallel.shard_ranks",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
    "optimizer": "optim",
    "scheduler": "schedule",
    "data_types.grad_accum_dtype": "precision",
    "communication_data_type": "precision",
    "torch_autocast": "precision",
    "bfloat16": "precision",
}

_BUCKET = 500_000_000  # elements that are reduced, or gathered, at a time
# The same where there is one rank, and stages 1 and 2 send nothing: a gradient that is larger is
# taken as it is, and not copied into a bucket first.
_BUCKET_ALONE = 1
_PARAMETER_BUFFERS = 8  # more than the parameters of any one module

_LOSS_SCALING = {  # of fp16
    "auto_cast": False,
    "loss_scale": 0,  # dynamic
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1,
}


def deepspeed_config(
    parallel: Parallel,
    precision: Precision,
    *,
    micro_batch_size: int,
    accumulation_steps: int,
    world_size: int,
    max_grad_norm: float,
    device_type: str,
    extra: dict[str, Any] | None = None,
    largest_parameter: int = 100_000_000,
    parameters: int = _BUCKET,
    swap_directory: str | None = None,
) -> dict[str, Any]:
    """The complete DeepSpeed configuration of a run; `extra` is merged last.

    largest_parameter, parameters: elements of one, of all. swap_directory: this run's own, on disk.
    """
    held = held_as(precision)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "train_batch_size": micro_batch_size * accumulation_steps * world_size,
        "gradient_clipping": max_grad_norm,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": held,
        "data_types": {"grad_accum_dtype": held},
        "fp16": {"enabled": held == "fp16", **_LOSS_SCALING},
        "bf16": {
            "enabled": held == "bf16",
            "immediate_grad_update": False,
            "check_grad_overflow": True,  # a NaN gradient must not reach the master weights
            "bf16_master_weights_and_grads": False,
            "bf16_optimizer_states": False,
        },
        "torch_autocast": {"enabled": False},
        "zero_optimization": _zero_section(parallel, device_type, world_size, parameters)
        | _offload(parallel, device_type, swap_directory, -(-largest_parameter // world_size)),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its CPU Adam compiles C++ for a minute
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "disable_allgather": False,
        "flops_profiler": {"enabled": False},
        "comms_logger": {"enabled": False},
        "checkpoint": {"tag_validation": "Ignore", "load_universal": False},
        "dataloader_drop_last": False,
    }
    return _merge(config, extra or {})


def _zero_section(
    parallel: Parallel, device_type: str, world_size: int, parameters: int
) -> dict[str, Any]:
    bucket = _BUCKET_ALONE if world_size == 1 and parallel.zero_stage in (1, 2) else _BUCKET
    return {
        "stage": parallel.zero_stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": min(bucket, parameters),  # set aside whole in each backward pass
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": _BUCKET,
        # Stage 1 reduces once, after the last micro-batch: there is nothing to overlap with.
        "overlap_comm": parallel.zero_stage >= 2 and device_type == "cuda",
        "load_from_fp32_weights": True,
        "elastic_checkpoint": False,
        "sub_group_size": 1_000_000_000,
        "ignore_unused_parameters": True,
        "legacy_stage1": False,
        "round_robin_gradients": False,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 100_000,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
        "stage3_gather_16bit_weights_on_model_save": False,
        "zero_hpz_partition_size": parallel.shard_ranks if parallel.sharding == "hpz" else 1,
        "zero_quantized_weights": False,
        "zero_quantized_gradients": False,
        "memory_efficient_linear": False,  # replaces F.linear globally
    }


def _offload(
    parallel: Parallel, device_type: str, swap_directory: str | None, largest_part: int
) -> dict[str, Any]:
    """What is kept outside the device's memory, and how much of it is fetched at a time."""
    if parallel.offload == "none":
        return {}
    is_nvme = parallel.offload_to == "nvme"
    place: dict[str, Any] = {"device": parallel.offload_to, "pin_memory": device_type == "cuda"}
    if is_nvme:
        assert swap_directory is not None  # two runs on one disk must not share files
        place["nvme_path"] = swap_directory
    optimizer = {
        **place,
        "buffer_count": 4,
        "pipeline_read": False,
        "pipeline_write": False,
        "fast_init": False,
        "ratio": 1.0,
    }
    found: dict[str, Any] = {"offload_optimizer": optimizer}
    if is_nvme:
        # A step holds one sub-group's master weights, gradients and two moments in buffers.
        found["sub_group_size"] = 100_000_000
    if parallel.offload == "all":
        found["offload_param"] = {
            **place,
            "buffer_count": _PARAMETER_BUFFERS,
            "buffer_size": largest_part,
            "max_in_cpu": 0,
        }
    if parallel.offload == "all" and is_nvme:
        # A parameter keeps its buffer until it is let go, and there is one for each.
        found |= {
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
        }
    return found


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in extra.items():
        old = merged.get(name)
        nested = isinstance(old, dict) and isinstance(value, dict)
        merged[name] = _merge(old, value) if nested else value  # type: ignore[arg-type]
    return merged


def misplaced_keys(extra: dict[str, Any]) -> list[str]:
    """Sections of DeepSpeed's configuration that `deepspeed.extra` would replace by a value."""
    sections = ("zero_optimization", "bf16", "fp16", "data_types", "checkpoint", "torch_autocast")
    return [name for name in sections if name in extra and not isinstance(extra[name], dict)]


def owned_keys(extra: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The keys of `deepspeed.extra` that Ingot sets itself, each with ours to write instead."""
    for name, value in extra.items():
        dotted = f"{prefix}{name}"
        if dotted in OWNED_KEYS:
            yield dotted, OWNED_KEYS[dotted]
        elif isinstance(value, dict):
            yield from owned_keys(value, f"{dotted}.")
