"""Batches for the tests of worker processes; without torch, so that those start fast."""

import os

import numpy as np

from runtime.errors import UserError


def made(step: int) -> dict[str, np.ndarray]:
    if step == 13:
        raise UserError("a shard cannot be read", status=2)
    if step == 14:
        raise ValueError("a mistake")
    if step == 15:
        os._exit(3)
    large = np.full((1 << 19,), step, np.int64)  # more than a socket holds
    return {
        "step": np.array(step),
        "large": large,
        "none": np.zeros((0, 5), np.int32),
        "flags": np.array([[True], [False]]),
        "every other": np.arange(10, dtype=np.float32)[::2],
        "pid": np.array(os.getpid()),
    }
