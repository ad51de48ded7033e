"""Chance as a pure function of (seed, purpose, sample number): no generator has a state to save."""

import zlib

import numpy as np
import numpy.typing as npt

from runtime.seed import mix

Bits = npt.NDArray[np.uint64]
Uniforms = npt.NDArray[np.float64]

VALIDATION_SEED = 2**31  # no run's: every run is validated on the same masks and pairs


class Draws:
    """Numbers of one purpose, the same for a sample at any world size, restart or batch.

    Philox (Salmon et al., SC 2011) keyed by the sample; only its raw words are used, which NumPy
    promises never to change, and not the methods of `Generator`, which it may.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self._key = mix(seed, zlib.crc32(purpose.encode()))

    def bits(self, sample: int, count: int) -> Bits:
        """Random words. (count,) uint64."""
        key = np.array([self._key, sample], dtype=np.uint64)
        found: Bits = np.random.Philox(key=key).random_raw(count)
        return found

    def uniform(self, sample: int, count: int) -> Uniforms:
        """Random numbers in [0, 1). (count,) float64."""
        return to_uniform(self.bits(sample, count))


def to_uniform(bits: Bits) -> Uniforms:
    """Random words as numbers in [0, 1), from their upper 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
