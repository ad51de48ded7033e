"""A shuffle that needs no memory: the i-th element of a keyed permutation of range(n).

A Feistel network permutes the next power of four; values that fall outside range(n) are sent
through again until they fall inside ("cycle walking"; Black and Rogaway, CT-RSA 2002).
"""

import hashlib

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
_U64 = np.uint64
Indices = npt.NDArray[np.uint64]


def make_key(*parts: int) -> Indices:
    """Round keys from a few integers. (8,) uint64."""
    text = ",".join(map(str, parts)).encode("ascii")
    digest = hashlib.blake2b(text, digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(_U64)


def permute(indices: npt.ArrayLike, size: int, key: Indices) -> npt.NDArray[np.int64]:
    """Where the permutation of range(size) sends each index. Any shape, int64, same shape."""
    values = np.array(indices, dtype=_U64)
    half = _half(size)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, key)
        outside = values >= size
    return values.astype(np.int64)


def unpermute(values: npt.ArrayLike, size: int, key: Indices) -> npt.NDArray[np.int64]:
    """The indices that `permute` sends to these values. Any shape, int64, same shape."""
    indices = np.array(values, dtype=_U64)
    half = _half(size)
    outside = np.ones(indices.shape, dtype=bool)
    while outside.any():
        indices[outside] = _feistel_back(indices[outside], half, key)
        outside = indices >= size
    return indices.astype(np.int64)


def _half(size: int) -> np.uint64:
    """Bits of each half of the network's values."""
    return _U64(max((max(size - 1, 1).bit_length() + 1) // 2, 1))


def _feistel(values: Indices, half: np.uint64, key: Indices) -> Indices:
    mask = _U64((1 << int(half)) - 1)
    left, right = values >> half, values & mask
    for round_key in key:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << half) | right


def _feistel_back(values: Indices, half: np.uint64, key: Indices) -> Indices:
    mask = _U64((1 << int(half)) - 1)
    left, right = values >> half, values & mask
    for round_key in key[::-1]:
        left, right = right ^ (_mix(left ^ round_key) & mask), left
    return (left << half) | right


def _mix(values: Indices) -> Indices:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014): every input bit reaches every output."""
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return values ^ (values >> _U64(31))
