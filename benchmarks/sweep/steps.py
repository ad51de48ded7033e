"""Training steps of one model: rate, memory, and what the time goes to."""

import gc
import importlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from benchmarks.sweep.bare_step import bare_step
from benchmarks.sweep.models import DRY_MODELS, MODELS, Model
from benchmarks.sweep.prepared import Prepared, Variant
from benchmarks.sweep.timing import Times, alternate, is_over, wait
from model.flops import mfu, parameters
from model.heads import LanguageModel
from model.memory import Recompute
from runtime.errors import UserError

# Parts of kernels' names, in this order; what has none is elementwise. The compiler names a kernel
# after what it computes: only the optimizer's update has a lerp or an addcmul.
_KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa", "cudnn_generated", "_bwd_dkdv"),
    "gemm": ("gemm", "nvjet", "cutlass", "cublas", "splitk", "::mm", "addmm", "::linear"),
    "optimizer": ("adam", "multi_tensor", "foreach", "norm_two_ops", "lpnorm", "addcmul", "lerp"),
}

Row = dict[str, Any]


class _Ready(NamedTuple):
    """A step that ran, and what its first runs told."""

    prepared: Prepared
    row: Row
    first_s: float  # of the first step, which compiles


def rows(
    device: torch.device, name: str, *, is_dry: bool, until: float = math.inf
) -> Iterator[Row]:
    """Step the model of that name by each of its kernels, with the largest batch that fits.

    until: of `time.monotonic`; turns that would begin later are left out. A row that has the key
    `continues` adds to the one of its kernels.
    """
    model = next(m for m in (DRY_MODELS if is_dry else MODELS) if m.name == name)
    for recompute in model.recompute:
        for size in model.batch_sizes:
            ready: list[_Ready] | None
            tried = {"model": name, "batch_size": size, "seq_len": model.seq_len}
            tried |= {"precision": model.precision, "recompute": recompute}
            try:
                ready, found = _measure(model, size, recompute, device, until)
            except torch.OutOfMemoryError:
                ready = None
            if ready is None:  # here, where the error no longer holds the model
                yield tried | {"failed": "out of memory"}
                torch._dynamo.reset()  # another size would be compiled for sizes of any kind
                continue
            yield from (tried | row for row in found)
            for one in ready:
                told = {"continues": True, "kernels": one.row["kernels"]}
                yield told | _split_up(one, device, until)
            return


def _measure(
    model: Model, size: int, recompute: Recompute, device: torch.device, until: float
) -> tuple[list[_Ready], list[Row]]:
    """The steps, ready to be looked into, and their rows. Raises OutOfMemoryError."""
    ready: list[_Ready] = []
    found: list[Row] = []
    for kernels in model.kernels:
        told = {"kernels": kernels}
        try:
            ready.append(_make_ready(model, Variant(size, recompute, kernels), device))
        except (ImportError, ValueError, UserError) as error:  # what it needs is not here
            found.append(told | {"left_out": (str(error).splitlines() or [""])[0]})
        except torch.OutOfMemoryError:
            raise  # the smaller batch is tried, for both
        except Exception as error:
            if not ready:
                raise
            found.append(told | {"failed": (str(error).splitlines() or [""])[0][:120]})
    calls = {one.row["kernels"]: one.prepared.step for one in ready}
    times = alternate(calls, device, repeats=3, until=until) if calls else {}
    done = [_rates(model, one, times[one.row["kernels"]], device) for one in ready]
    return ready, [*done, *found]


def _make_ready(model: Model, variant: Variant, device: torch.device) -> _Ready:
    on_gpu = device.type == "cuda"
    _clear(device)
    held = torch.cuda.memory_reserved() if on_gpu else 0  # by a step that it takes turns with
    start = time.perf_counter()
    prepared = _prepare(model, variant, device)
    built = time.perf_counter()
    prepared.step()
    wait(device)
    first = time.perf_counter() - built
    row: Row = {"kernels": variant.kernels, **prepared.told, "build_s": built - start}
    row["memory_gb"] = None
    if on_gpu:
        torch.cuda.empty_cache()  # what compiling left
        torch.cuda.reset_peak_memory_stats()
        prepared.step()
        wait(device)
        row["memory_gb"] = (torch.cuda.max_memory_reserved() - held) / 1e9
    return _Ready(prepared, row, first)


def _prepare(model: Model, variant: Variant, device: torch.device) -> Prepared:
    """A step through our engine, or without DeepSpeed where it cannot be imported."""
    try:
        importlib.import_module("deepspeed")  # our engine imports it only when it is made
        from benchmarks.sweep.engine_step import engine_step
    except ImportError as error:
        return bare_step(model, variant, device, f"no {error.name}")
    return engine_step(model, variant, device)


def _rates(model: Model, ready: _Ready, times: Times, device: torch.device) -> Row:
    config, seconds = model.config(), times.median
    rate = ready.prepared.batch["input_ids"].numel() / seconds
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    length = model.document or model.seq_len
    used = mfu(rate, config, length, name, head=model.head, predicted_fraction=model.predicted)
    return {
        **ready.row,
        "parameters": parameters(config, model.head),
        "tokens_per_second": rate,
        "step_ms": seconds * 1e3,
        "step_min_ms": times.minimum * 1e3,
        "turns": len(times.turns),
        "mfu": used and used.full,
        "mfu_causal": used and used.causal,
        "compile_s": ready.first_s - seconds,
        "step_turns_s": times.turns,
    }


def _split_up(ready: _Ready, device: torch.device, until: float) -> Row:
    """What a step's time goes to; nothing where there is no time left to look."""
    found: Row = {"shares": None, "head_alone_ms": None, "head_alone_min_ms": None}
    try:
        if not is_over(until):
            found["shares"] = _shares(ready.prepared.step, device)
        if not is_over(until):
            times = head_times(ready.prepared, device, until)
            found["head_alone_ms"] = times.median * 1e3
            found["head_alone_min_ms"] = times.minimum * 1e3
    except torch.OutOfMemoryError:
        pass
    return found


def _clear(device: torch.device) -> None:
    """Let go of the memory of a model that did not fit."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def kind_of(kernel: str) -> str:
    """Of which kind a kernel, or an operator, is by its name."""
    name = kernel.lower()
    # The compiler's own, pointwise or reducing, bear names of products whose results they use.
    is_made = name.startswith(("triton_poi", "triton_per", "triton_red"))
    kinds = {"optimizer": _KINDS["optimizer"]} if is_made else _KINDS
    return next((k for k, parts in kinds.items() if any(p in name for p in parts)), "elementwise")


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
        # An operator, or a stretch with a name: their kernels are counted themselves.
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu and (not is_kernel or event.is_user_annotation):
            continue
        time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent[kind_of(event.key)] += time_us
    whole = sum(spent.values()) or 1.0
    return {kind: value / whole for kind, value in spent.items()}


def head_times(prepared: Prepared, device: torch.device, until: float = math.inf) -> Times:
    """Times of all that follows the trunk in the step's own model, forward and backward."""
    net, batch = prepared.net, prepared.batch
    assert isinstance(net, LanguageModel)
    matrix, dtype = net.output_weight(), net.output_weight().dtype
    # By themselves, so that no gradient reaches the engine's hooks.
    leaves = {
        name: parameter.detach().requires_grad_()
        for name, parameter in net.named_parameters()
        if parameter is matrix or not name.startswith("trunk.")
    }
    hidden = torch.randn(
        *batch["input_ids"].shape, net.config.d_model, device=device, dtype=dtype
    ).requires_grad_()

    def head() -> tuple[Tensor, ...]:
        with mock.patch.object(net.trunk, "forward", return_value=hidden):
            loss = torch.func.functional_call(net, leaves, kwargs=batch).loss
        return torch.autograd.grad(loss, (hidden, *leaves.values()))

    return alternate({"head": head}, device, repeats=3, until=until)["head"]
