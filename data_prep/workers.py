"""Batches made ahead of time, in order, by processes of their own.

Each worker is asked for data steps over a socket of its own and answers with the bytes of its
arrays; in each worker one batch is ready while the trainer computes, and the next one is asked for.

Why not torch's DataLoader, with what was measured: docs/adr/0008. In short, here a worker's death
and the trainer's are the end of a socket, known at once on either side, and nothing is left behind.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker, util
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from runtime.errors import EXIT_FAILED, EXIT_OK, UserError

Arrays = dict[str, npt.NDArray[Any]]
Make = Callable[[int], Mapping[str, npt.ArrayLike]]

_STEP = struct.Struct("<q")
_LENGTH = struct.Struct("<I")
_ASKED = 2  # steps that each worker is asked for ahead: the one it holds, and the next
# A terminal's Ctrl-C and a launcher's signals reach every process; what they mean is for the
# trainer to decide, which may still need batches until it has saved.
_TRAINERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_MENDS: dict[int, str] = {
    signal.SIGKILL: "; if the machine ran out of memory, lower data.workers",
    signal.SIGBUS: "; a shard was shortened, or its disk does not read: verify the data",
}


class _Worker(NamedTuple):
    number: int
    pid: int
    process: SpawnProcess
    channel: socket.socket


class Workers:
    """`count` processes that call `make(step)`; what it needs is copied to them once.

    Their number, and who makes which step, change no byte of any batch.
    """

    def __init__(self, make: Make, count: int) -> None:
        resource_tracker.ensure_running()  # multiprocessing's; its start would lift the mask below
        # A start lasts until the worker has read all that it needs: seconds, in which the trainer
        # has better to do. `make` is packed here, for the trainer goes on using it.
        packed = bytes(ForkingPickler.dumps(make))
        threads = ThreadPoolExecutor(count, initializer=_hold_signals_back)
        self._starting = [threads.submit(_start, number, packed) for number in range(count)]
        threads.shutdown(wait=False)
        # Also when the interpreter ends, before multiprocessing waits for its processes.
        self._end = util.Finalize(self, _end, (self._starting,), exitpriority=100)
        self._asked: deque[tuple[int, _Worker]] = deque()
        self._turn = 0

    def take(self, step: int, following: Callable[[int], int]) -> Arrays:
        """The batch of a data step; the steps that follow it are asked for ahead.

        Raises UserError naming a worker that has died, or with what went wrong inside it.
        """
        while self._asked and self._asked[0][0] != step:
            self._answer()  # asked for before the loader was set to another step
        while len(self._asked) < _ASKED * len(self._starting):
            self._ask(following(self._asked[-1][0]) if self._asked else step)
        head, arrays = self._answer()
        if "error" in head:
            raise UserError(head["error"], status=head["status"])
        return arrays

    @property
    def pids(self) -> list[int]:
        """The workers' process ids, in the order in which they take turns."""
        return [one.result().pid for one in self._starting]

    def close(self) -> None:
        """End the workers now; they hold nothing that could be lost."""
        self._asked.clear()
        self._end()

    def _ask(self, step: int) -> None:
        worker = self._starting[self._turn].result()
        self._turn = (self._turn + 1) % len(self._starting)
        try:
            worker.channel.sendall(_STEP.pack(step))
        except ConnectionError as error:
            raise _death_of(worker, step) from error
        self._asked.append((step, worker))

    def _answer(self) -> tuple[dict[str, Any], Arrays]:
        """What comes next from the worker whose turn it is."""
        step, worker = self._asked.popleft()
        try:
            (length,) = _LENGTH.unpack(_receive(worker.channel, _LENGTH.size))
            head = orjson.loads(_receive(worker.channel, length))
            return head, {name: _receive_array(worker.channel, *of) for name, *of in head["arrays"]}
        except (ConnectionError, EOFError) as error:
            raise _death_of(worker, step) from error


def _hold_signals_back() -> None:
    """Start processes that never see the trainer's signals: they inherit this thread's mask."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINERS)


def _start(number: int, packed: bytes) -> _Worker:
    ours, theirs = socket.socketpair()
    with theirs:  # from now on in the worker alone: when it dies, our end says so
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(number, theirs, packed), name=f"data worker {number}", daemon=True
        )
        try:
            process.start()
        except OSError as error:  # no more processes, or it died over its first imports
            raise UserError(f"data worker {number} cannot be started: {error}") from error
    assert process.pid is not None
    return _Worker(number, process.pid, process, ours)


def _end(starting: list[Future[_Worker]]) -> None:
    workers = [one.result() for one in starting if one.exception() is None]
    for worker in workers:
        worker.channel.close()
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.process.close()


def _death_of(worker: _Worker, step: int) -> UserError:
    worker.process.join(timeout=5)
    status = worker.process.exitcode
    how, mend = "closed its socket", ""
    if status is not None and status < 0:
        how = f"was killed by signal {-status} ({signal.strsignal(-status)})"
        mend = _MENDS.get(-status, "")
    elif status is not None:
        how = f"ended with status {status}, see above"
    return UserError(
        f"data worker {worker.number} (pid {worker.pid}) {how} at data step {step}{mend}"
    )


def _work(number: int, channel: socket.socket, packed: bytes) -> None:
    """A worker's life: until the trainer closes its end, or is no more."""
    make = ForkingPickler.loads(packed)
    with contextlib.suppress(ConnectionError, EOFError):
        while True:
            (step,) = _STEP.unpack(_receive(channel, _STEP.size))
            _send(channel, *_make(number, make, step))
    os._exit(EXIT_OK)  # nothing is open; to take an interpreter apart can take a second


def _make(number: int, make: Make, step: int) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
    """An answer: its head, and the arrays that follow it."""
    try:
        arrays = {name: np.asarray(value, order="C") for name, value in make(step).items()}
    except Exception as error:
        told, status = str(error), getattr(error, "status", EXIT_FAILED)
        if not isinstance(error, UserError):
            traceback.print_exc()
            where = f"data worker {number} (pid {os.getpid()}) failed at data step {step}"
            told = f"{where}: {type(error).__name__}: {error}"
        return {"arrays": [], "error": told, "status": status}, []
    heads = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    return {"arrays": heads}, list(arrays.values())


def _send(channel: socket.socket, head: dict[str, Any], arrays: Sequence[npt.NDArray[Any]]) -> None:
    packed = orjson.dumps(head)
    channel.sendall(_LENGTH.pack(len(packed)) + packed)
    for array in arrays:
        channel.sendall(_bytes_of(array))


def _receive(channel: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    _receive_into(channel, memoryview(data))
    return data


def _receive_array(channel: socket.socket, dtype: str, shape: list[int]) -> npt.NDArray[Any]:
    array = np.empty(shape, dtype)
    _receive_into(channel, _bytes_of(array))
    return array


def _receive_into(channel: socket.socket, view: memoryview) -> None:
    while len(view):
        count = channel.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
