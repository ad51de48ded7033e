"""A rank of a real run in which chosen things go wrong. Only tests start it.

INGOT_FAULTS in the environment holds a JSON list of faults. Each has a `kind` (a function below),
perhaps a `rank` (all ranks without one), and the kind's own values:

step       do, step                before the step-th optimizer step of this process, counted from 1
op         do, op, under, [times, first]
                                   at the op-th change of the disk below a folder, counted from 1,
                                   once the step `first` has begun
call       do, what, [times]       at the first calls of a function, given as module.name
limit_files bytes                  from the start, no file may grow beyond it, as on a full disk
write      do, after, under, [times, first]
                                   at writes below a folder, once so many bytes were written there
                                   since the step `first` began
value      name, value             a module's constant, as module.NAME
little_room bytes                  so much is free on every disk
record_ops path, under             write down when and what those changes are
poison     rows, what              the loss or gradients of micro-batches that hold such a row
flip       step, key, [bit, at]    one bit of this rank's weight ("weight") or moment ("exp_avg")
                                   as the step begins, or before ranks are compared ("comparison")
slow       seconds, [first, last]  every forward pass of these steps takes so much longer
file_limit bytes, [first, last]    no file may grow beyond it, as on a full disk
record_rows path                   write down which rows each step trained on

`do` is a signal's name, an errno's name, "raise", "exit" or "hold_gil".
"""

import ctypes
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

Around = Callable[[int, Any, nn.Module, Callable[[], torch.Tensor]], torch.Tensor]
_before_step: list[Callable[[int, Any], None]] = []  # (step, engine)
_before_comparison: list[Callable[[int, Any], None]] = []
_around_loss: list[Around] = []  # (step, batch, module, the loss as it would be)


class InjectedError(Exception):
    """What "raise" raises: an error that nobody expects."""


def strike(action: str) -> None:
    """Make something go wrong, here and now."""
    if action.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, action))
        time.sleep(0.01)  # a signal to oneself may arrive a moment later
    elif action == "raise":
        raise InjectedError("injected")
    elif action == "exit":
        os._exit(7)
    elif action == "hold_gil":
        ctypes.PyDLL(None).sleep(3600)
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))


def step(do: str, step: int) -> None:
    def at(number: int, _engine: Any) -> None:
        if number == step:
            strike(do)

    _before_step.append(at)


def op(do: str, op: int, under: str, times: int = 1, first: int = 0) -> None:
    has_begun, count = _once_begun(first), [0]

    def at(_number: int, _text: str) -> None:
        if has_begun():
            count[0] += 1
            if op <= count[0] < op + times:
                strike(do)

    _watch_disk(Path(under), at)


def call(do: str, what: str, times: int = 1) -> None:
    module_name, _, name = what.rpartition(".")
    module, left = import_module(module_name), [times]
    real = getattr(module, name)

    def wrapped(*values: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            strike(do)
        return real(*values, **named)

    setattr(module, name, wrapped)


def _once_begun(step: int) -> Callable[[], bool]:
    """Whether a step of this process has begun; 0: from the start."""
    latest = [0]
    if step:
        _before_step.append(lambda number, _engine: latest.__setitem__(0, number))
    return lambda: latest[0] >= step


def write(do: str, after: int, under: str, times: int = 1, first: int = 0) -> None:
    has_begun = _once_begun(first)
    prefix, left, lock = f"{os.path.realpath(under)}/", [times, after], threading.Lock()
    real = os.write

    def wrapped(descriptor: int, data: Any) -> int:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if has_begun() and path.startswith(prefix):
            with lock:
                left[1] -= len(data)
                strikes = left[1] < 0 < left[0]
                left[0] -= strikes
            if strikes:
                real(descriptor, memoryview(data)[: len(data) // 2])  # a part of it fits
                strike(do)
        return real(descriptor, data)

    os.write = wrapped


def value(name: str, value: Any) -> None:
    module, _, constant = name.rpartition(".")
    found = import_module(module)
    assert hasattr(found, constant)
    setattr(found, constant, value)


def little_room(bytes: int) -> None:
    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real(path)._replace(free=bytes)


def limit_files(bytes: int) -> None:
    # Python ignores SIGXFSZ, so that a write beyond the limit fails with EFBIG.
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, hard))


def record_ops(path: str, under: str) -> None:
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def at(_number: int, text: str) -> None:
        os.write(file, f"{time.monotonic_ns()} {text}\n".encode())  # one clock for all processes

    _watch_disk(Path(under), at)


def _watch_disk(under: Path, at: Callable[[int, str], None]) -> None:
    """Call `at(number, what)` before each change below a folder, in whichever thread it is made.

    Python's audit events tell of open, mkdir, rename, remove and rmdir; fsync has none. What
    safetensors writes from Rust is not seen; that it is forced to the disk is.
    """
    prefix, count, lock = f"{os.path.realpath(under)}/", [0], threading.Lock()

    def seen(what: str, *paths: str) -> None:
        if any(f"{path}/".startswith(prefix) for path in paths):
            with lock:
                count[0] += 1
                number = count[0]
            at(number, " ".join([what, *(path.removeprefix(prefix) for path in paths)]))

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(values[0], str | bytes | os.PathLike):
            flags = values[2] if isinstance(values[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                seen("write", _absolute(values[0]))
        elif event == "os.rename":
            seen("rename", _absolute(values[0], values[2]), _absolute(values[1], values[3]))
        elif event in ("os.mkdir", "os.remove", "os.rmdir"):
            seen(event.removeprefix("os."), _absolute(values[0], values[-1]))

    real_fsync = os.fsync

    def fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        seen("fsync", str(Path(f"/proc/self/fd/{number}").readlink()))
        real_fsync(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def _absolute(path: Any, folder: Any = None) -> str:
    name = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0:
        name = f"{Path(f'/proc/self/fd/{folder}').readlink()}/{name}"
    return str(Path(os.path.realpath(Path(name).parent)) / Path(name).name)


def row_digests(rows: torch.Tensor) -> list[str]:
    """A name for each row of token ids, (B, T)."""
    return [hashlib.sha256(r.to(torch.int64).numpy().tobytes()).hexdigest()[:16] for r in rows]


class _PoisonedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, value: float) -> torch.Tensor:
        ctx.value = value
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient * ctx.value, None


def poison(rows: list[str], what: str) -> None:
    """what: loss or gradient, and a factor: "loss nan", "gradient inf", "loss 50"."""
    where, factor = what.split()
    poisoned = set(rows)

    def around(
        _step: int, batch: Any, _module: nn.Module, loss: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        if poisoned.isdisjoint(row_digests(batch["input_ids"])):
            return loss()
        if where == "loss":
            return loss() * float(factor)
        return _PoisonedGradient.apply(loss(), float(factor))

    _around_loss.append(around)


def flip(step: int, key: str, bit: int = 0, at: str = "step") -> None:
    """One bit, by default the mantissa's lowest, in the last tensor that the rank answers for."""

    def strike_memory(number: int, engine: Any) -> None:
        if number != step:
            return
        if key == "weight":
            last = list(engine.module.parameters())[-1]
            tensor = getattr(last, "ds_tensor", last.data).view(-1)
        else:
            tensor = [s.tensor for s in engine.optimizer_slices() if s.key == key][-1]
        assert tensor.is_contiguous()
        bits = tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)
        bits[0] ^= 1 << bit

    (_before_comparison if at == "comparison" else _before_step).append(strike_memory)


def slow(seconds: float, first: int = 1, last: int = sys.maxsize) -> None:
    def around(
        step: int, _batch: Any, _module: nn.Module, loss: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        if first <= step <= last:
            time.sleep(seconds)
        return loss()

    _around_loss.append(around)


def file_limit(bytes: int, first: int = 1, last: int = sys.maxsize) -> None:
    # Python ignores SIGXFSZ, so that a write beyond the limit fails with EFBIG.
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def at(number: int, _engine: Any) -> None:
        limit = bytes if first <= number <= last else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    _before_step.append(at)


def record_rows(path: str) -> None:
    rank = os.environ.get("RANK", "0")
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def around(
        step: int, batch: Any, _module: nn.Module, loss: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        for digest in row_digests(batch["input_ids"]):
            os.write(file, f"{step} {rank} {digest}\n".encode())
        return loss()

    _around_loss.append(around)


def arm() -> None:
    """Prepare what INGOT_FAULTS asks of this rank."""
    rank = int(os.environ.get("RANK", "0"))
    for fault in json.loads(os.environ.get("INGOT_FAULTS") or "[]"):
        if fault.pop("rank", rank) == rank:
            globals()[fault.pop("kind")](**fault)
    if _before_step or _before_comparison or _around_loss:
        _wrap_train_step()


def _wrap_train_step() -> None:
    from runtime.engine import Engine

    real, compare, count = Engine.train_step, Engine.compare_replicas, [0]

    def compare_replicas(self: Engine) -> Any:
        for before in _before_comparison:
            before(count[0] + 1, self)
        return compare(self)

    def train_step(
        self: Engine, micro_batches: Iterable[Any], loss_of: Any, *rest: Any, **options: Any
    ) -> Any:
        count[0] += 1
        number = count[0]
        for before in _before_step:
            before(number, self)

        def wrapped(module: nn.Module, batch: Any) -> torch.Tensor:
            def loss() -> torch.Tensor:
                return loss_of(module, batch)

            for around in _around_loss:
                loss = _nested(around, number, batch, module, loss)
            return loss()

        return real(self, micro_batches, wrapped, *rest, **options)

    Engine.train_step = train_step  # type: ignore[method-assign]
    Engine.compare_replicas = compare_replicas  # type: ignore[method-assign]


def _nested(
    around: Around, step: int, batch: Any, module: nn.Module, loss: Callable[[], torch.Tensor]
) -> Callable[[], torch.Tensor]:
    return lambda: around(step, batch, module, loss)


def pretrain(argv: list[str]) -> int:
    """`python -m pretrain …` with faults."""
    arm()
    from pretrain.__main__ import main
    from runtime.errors import leave

    leave(main(argv))


if __name__ == "__main__":
    pretrain(sys.argv[1:])
