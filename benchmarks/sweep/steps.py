"""Training steps of one model: rate, memory, and what the time goes to."""

import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.sweep.models import DRY_MODELS, MODELS, Model
from benchmarks.sweep.timing import median_seconds, wait
from model import build, float8
from model.flops import mfu, parameters
from model.init import parameter_groups
from model.kernels import linear_cross_entropy
from runtime.optim import build_optimizer
from runtime.sections import Optim, Parallel

_OPTIM = Optim()

# Parts of kernels' names, in this order; what has none is elementwise.
_KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa", "cudnn_generated", "_bwd_dkdv"),
    "gemm": ("gemm", "nvjet", "cutlass", "cublas", "splitk", "::mm", "addmm", "::linear"),
    "optimizer": ("adam", "multi_tensor", "foreach", "norm_two_ops", "lpnorm"),
}


def rows(device: torch.device, name: str, *, is_dry: bool) -> Iterator[dict[str, Any]]:
    """Step the model of that name, with the largest batch that fits."""
    model = next(m for m in (DRY_MODELS if is_dry else MODELS) if m.name == name)
    for recompute in model.recompute:
        for size in model.batch_sizes:
            tried = {"model": name, "batch_size": size, "seq_len": model.seq_len}
            tried["precision"] = model.precision
            tried["recompute"] = recompute
            try:
                yield tried | _measure(model, size, recompute, device, is_dry=is_dry)
                return
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                yield tried | {"failed": "out of memory"}


def _measure(
    model: Model, size: int, recompute: str, device: torch.device, *, is_dry: bool
) -> dict[str, Any]:
    torch.manual_seed(0)
    config, head = model.config(), "masked_lm" if model.predicted < 1 else "causal_lm"
    # Drawn where they will be: on the host 7 billion numbers take minutes.
    with torch.device(device):
        net = build(config, head)
    net.trunk.set_recompute(recompute)
    net.trunk.splits_documents = False
    if model.precision == "fp8":
        float8.use_in(net.trunk, emulate=device.type == "cpu")
    for block in net.trunk.blocks:
        block.forward = torch.compile(block.forward)
    batch = model.batch(size, device)
    step, engine = _step(net, batch, device)
    start = time.perf_counter()
    step()
    wait(device)
    first = time.perf_counter() - start
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(step, device, repeats=3, turns=3 if is_dry else 5)
    reserved = torch.cuda.max_memory_reserved() / 1e9 if device.type == "cuda" else None
    rate = size * model.seq_len / seconds
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    length = model.document or model.seq_len
    used = mfu(rate, config, length, name, head=head, predicted_fraction=model.predicted)
    return {
        "engine": engine,
        "parameters": parameters(config, head),
        "tokens_per_second": rate,
        "step_ms": seconds * 1e3,
        "mfu": used and used.full,
        "mfu_causal": used and used.causal,
        "memory_gb": reserved,
        "compile_s": first - seconds,
        "shares": _shares(step, device),
        "head_alone": _head_seconds(net, batch, device) / seconds,
    }


def _step(net: Any, batch: dict[str, Any], device: torch.device) -> tuple[Callable[[], None], str]:
    """A step through our engine, or without DeepSpeed where it is not installed."""
    try:
        importlib.import_module("deepspeed")  # the engine imports it only when it is made
        from runtime import dist
        from runtime.deepspeed_config import deepspeed_config
        from runtime.engine import Engine
    except ImportError as error:
        return _bare_step(net, batch), f"bare loop ({error.name} is not installed)"
    ranks = _ranks(dist, device)
    config = deepspeed_config(
        Parallel(zero_stage=1),
        "bf16",
        micro_batch_size=batch["input_ids"].shape[0],
        accumulation_steps=1,
        world_size=1,
        max_grad_norm=_OPTIM.max_grad_norm,
        device_type=device.type,
        parameters=sum(p.numel() for p in net.parameters()),
    )
    optimizer = build_optimizer(parameter_groups(net, _OPTIM.weight_decay), _OPTIM)
    engine = Engine(net, optimizer, config, ranks)
    return (
        lambda: engine.train_step([batch], lambda module, b: module(**b).loss, 1e-4) and None,
        "ZeRO-1",
    )


def _ranks(dist: Any, device: torch.device) -> Any:
    """The process group, which outlives a batch that did not fit."""
    if torch.distributed.is_initialized():
        return dist.Ranks(0, 0, 1, dist.resolve_device(device.type))
    return dist.init(device.type, timeout_s=600)


def _bare_step(net: Any, batch: dict[str, Any]) -> Callable[[], None]:
    groups = parameter_groups(net, _OPTIM.weight_decay)
    masters = {p: p.detach().clone() for p in net.parameters()}
    for group in groups:
        group["params"] = [masters[p] for p in group["params"]]
    net.to(torch.bfloat16)
    optimizer = build_optimizer(groups, _OPTIM)
    low, high = list(masters), list(masters.values())

    def step() -> None:
        net(**batch).loss.backward()
        for parameter, master in masters.items():
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(high, _OPTIM.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(low, high)

    return step


def _shares(step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Share of each kind of kernel in the time that the device worked."""
    on_gpu = device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
    with torch.profiler.profile(activities=kinds) as profiler:
        step()
        wait(device)
    spent = dict.fromkeys((*_KINDS, "elementwise"), 0.0)
    for event in profiler.key_averages():
        if on_gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue  # an operator, whose kernels are counted themselves
        time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        lowered = event.key.lower()
        kind = next((k for k, parts in _KINDS.items() if any(p in lowered for p in parts)), None)
        spent[kind or "elementwise"] += time_us
    whole = sum(spent.values()) or 1.0
    return {kind: value / whole for kind, value in spent.items()}


def _head_seconds(net: Any, batch: dict[str, Any], device: torch.device) -> float:
    """Seconds that output matrix and loss take by themselves, forward and backward."""
    wanted = batch["targets"].flatten()
    wanted = wanted[batch["rows"]] if "rows" in batch else wanted
    weight = net.output_weight().detach().to(torch.bfloat16).requires_grad_()
    hidden = torch.randn(len(wanted), weight.shape[1], device=device, dtype=torch.bfloat16)
    hidden.requires_grad_()

    def both() -> None:
        hidden.grad = weight.grad = None
        scored = linear_cross_entropy.loss(hidden, weight, wanted, vocab_size=net.config.vocab_size)
        scored.loss.backward()

    try:
        return median_seconds(both, device, repeats=3, turns=3)
    except torch.OutOfMemoryError:
        return float("nan")
