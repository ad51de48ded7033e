"""Randomness as a pure function of (seed, step, rank), so that nothing about it must be saved."""

import random

import numpy as np
import torch


def mix(*parts: int) -> int:
    """One 63-bit seed from several integers (NumPy's SeedSequence hash)."""
    words = np.random.SeedSequence(list(parts)).generate_state(2, dtype=np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def seed_initialisation(seed: int) -> None:
    """Seed every generator the same on all ranks, before parameters are drawn."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # libraries draw from the legacy generator
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout for one step: a resumed run draws what the uninterrupted one would have."""
    torch.manual_seed(mix(seed, step, rank))
