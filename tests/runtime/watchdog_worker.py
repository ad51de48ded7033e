"""A rank of a loop that trains nothing, with a fault on one rank: RUN_DIR FAULT VICTIM."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

from runtime import dist
from runtime.errors import command, leave
from runtime.watchdog import Watchdog

TIMEOUT_S = 5.0


def _wait_for_dead_worker() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=time.sleep, args=(600,))
    worker.start()
    time.sleep(0.5)  # the watcher has seen it
    if sys.argv[3] == "1":
        os.kill(worker.pid, signal.SIGKILL)
    queue.get()


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1)  # it is woken for its stacks, and must not get far


def _hold_the_gil() -> None:
    for _ in range(2):  # the signal for its stacks ends the first
        ctypes.PyDLL(None).sleep(1000)


FAULTS = {
    "stopped": _stop,
    "gil": _hold_the_gil,
    "data": lambda: time.sleep(1000),
    "worker": _wait_for_dead_worker,
    "killed while the other sleeps": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exception": lambda: {}["no such key"],
}


@command
def main() -> int:
    run_dir, fault, victim = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    ranks = dist.init("cpu", 600)
    try:
        with Watchdog(run_dir, ranks, start_timeout_s=60, hang_timeout_s=TIMEOUT_S) as watchdog:
            for step in range(12):
                watchdog.beat("data", step)
                if step == 8 and ranks.rank == victim and fault in FAULTS:
                    print(f"fault {time.time()}", flush=True)
                    FAULTS[fault]()
                watchdog.beat("agree")
                if step == 8 and fault == "killed while the other sleeps":
                    time.sleep(1000)
                dist.sum_over_ranks([1.0])
                watchdog.beat("step")
                watchdog.beat("save", step + 1)
                if step == 8 and fault == "pause":
                    print("pausing", flush=True)
                    for _ in range(2):
                        time.sleep(TIMEOUT_S / 5)
                if step == 8 and ranks.rank == victim and fault == "slow save":
                    for _ in range(int(2 * TIMEOUT_S / 0.5)):  # twice the timeout, but at work
                        time.sleep(0.5)
                        watchdog.pulse()
                dist.sum_over_ranks([1.0])
        return 0
    finally:
        dist.shutdown()


if __name__ == "__main__":
    leave(main())
