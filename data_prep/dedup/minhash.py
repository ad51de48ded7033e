"""MinHash signatures: for every hash function the least value over a document's shingles.

Two documents agree in a place of their signatures with the probability of their Jaccard similarity
(Broder 1997, On the resemblance and containment of documents).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data_prep.dedup.words import (
    CHUNK_CHARACTERS,
    U64,
    constants,
    mix,
    split_words,
    word_chunks,
)
from data_prep.dedup_config import NearDuplicates

U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]
_SHINGLES = 8192  # hashed at once: with all functions this is what a core's own cache holds
_NONE = np.uint32(0xFFFFFFFF)


class MinHasher:
    """Signs documents. Stateless but for its constants, so the same text always signs the same."""

    def __init__(self, config: NearDuplicates) -> None:
        self.ngram, self.bands, self.rows = config.ngram, config.bands, config.rows
        self._shingle = constants(config.ngram, stream=2)
        own = constants(2 * config.hashes, stream=3)
        # Odd factors: x → ax + b is then a permutation of the 32-bit numbers.
        self._factors = own[: config.hashes].astype(np.uint32)[:, None]
        self._terms = (own[config.hashes :] >> np.uint64(32)).astype(np.uint32)[:, None]
        self._band = constants(config.hashes, stream=4).reshape(config.bands, config.rows)
        self._band_number = constants(config.bands, stream=5)
        self._whole = constants(config.hashes, stream=6)
        self._space = np.empty((config.hashes, _SHINGLES), np.uint32)

    def sign(self, texts: Sequence[str]) -> tuple[U32, npt.NDArray[np.bool_]]:
        """Signatures (documents, hashes), and which documents have any word at all.

        A document shorter than a shingle is one shingle of the words that it has.
        """
        least = np.full((self._factors.shape[0], len(texts)), _NONE)
        signed = np.zeros(len(texts), np.bool_)
        for group in _groups(texts):
            # Slices of arrays are views: both methods write through them.
            if len(texts[group.start]) > CHUNK_CHARACTERS:
                signed[group] = self._sign_long(texts[group.start], least[:, group])
            else:
                self._sign_short(texts[group], least[:, group], signed[group])
        return np.ascontiguousarray(least.T), signed

    def band_keys(self, signatures: U32) -> U64:
        """One 64-bit key for each band: (documents, bands)."""
        wide = signatures.reshape(-1, self.bands, self.rows).astype(np.uint64)
        return mix((wide * self._band).sum(axis=2) + self._band_number)

    def whole_keys(self, signatures: U32) -> U64:
        """One 64-bit key for each whole signature: (documents,)."""
        return mix((signatures.astype(np.uint64) * self._whole).sum(axis=1))

    def _sign_long(self, text: str, least: U32) -> bool:
        """Sign one document chunk by chunk; whether it has a word."""
        carried = np.zeros(0, np.uint64)  # the words before, to begin shingles with
        total = 0
        for words in word_chunks(text):
            carried = np.concatenate([carried, words.hashes])
            total += len(words.hashes)
            if len(carried) >= self.ngram:
                self._lower(self._shingles(carried), np.zeros(1, np.int64), least)
                carried = carried[len(carried) - self.ngram + 1 :]
        if 0 < total < self.ngram:
            padded = np.zeros(self.ngram, np.uint64)
            padded[:total] = carried
            self._lower(self._shingles(padded), np.zeros(1, np.int64), least)
        return total > 0

    def _sign_short(self, texts: Sequence[str], least: U32, signed: npt.NDArray[np.bool_]) -> None:
        """Sign documents that are hashed together."""
        words = split_words("\n".join(texts))
        lengths = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
        first = np.searchsorted(words.starts, np.cumsum(lengths) - lengths)
        counts = np.diff(first, append=len(words.starts))
        signed[:] = counts > 0
        sizes = np.where(counts > 0, np.maximum(counts, self.ngram), 0)
        if not sizes.any():
            return
        begins = np.cumsum(sizes) - sizes
        padded = np.zeros(int(sizes.sum()), np.uint64)
        padded[np.arange(len(words.starts)) + np.repeat(begins - first, counts)] = words.hashes
        shingles = self._shingles(padded)
        own = np.maximum(sizes - self.ngram + 1, 0)  # those that lie within one document
        starts = np.cumsum(own) - own
        inside = np.arange(int(own.sum())) + np.repeat(begins - starts, own)
        at = np.flatnonzero(signed)
        part = least[:, at]
        self._lower(shingles[inside], starts[at], part)
        least[:, at] = part

    def _shingles(self, words: U64) -> U32:
        """Hashes of all runs of n words: (words − n + 1,)."""
        count = len(words) - self.ngram + 1
        total = np.zeros(count, np.uint64)
        for place, factor in enumerate(self._shingle):
            total += words[place : place + count] * factor
        return (mix(total) >> np.uint64(32)).astype(np.uint32)

    def _lower(self, shingles: U32, starts: npt.NDArray[np.int64], least: U32) -> None:
        """Take shingles into the least values; document d has those from starts[d] on.

        Multiply-add modulo 2³² (Dietzfelbinger et al. 1997) of well mixed numbers.
        """
        for begin in range(0, len(shingles), _SHINGLES):
            part = shingles[begin : begin + _SHINGLES]
            values = self._space[:, : len(part)]
            np.multiply(self._factors, part, out=values)
            values += self._terms
            first = int(np.searchsorted(starts, begin, side="right")) - 1
            last = int(np.searchsorted(starts, begin + len(part)))
            cuts = np.maximum(starts[first:last] - begin, 0)
            found = np.minimum.reduceat(values, cuts, axis=1)
            np.minimum(least[:, first:last], found, out=least[:, first:last])


def compact(signatures: U32) -> U8:
    """Eight bits of each value: enough to estimate similarity (Li & König 2010, b-bit MinHash)."""
    # The values are least ones, so that their upper bits are mostly zero: mix first.
    return ((signatures * np.uint32(0x9E3779B1)) >> np.uint32(24)).astype(np.uint8)


def similarity(one: U8, other: U8) -> npt.NDArray[np.float32]:
    """Estimated Jaccard similarity of rows of compact signatures: (pairs,)."""
    agree = (one == other).mean(axis=1, dtype=np.float64)
    by_chance = 1 / 256
    estimated: npt.NDArray[np.float32]
    estimated = np.maximum((agree - by_chance) / (1 - by_chance), 0).astype(np.float32)
    return estimated


def _groups(texts: Sequence[str]) -> Iterator[slice]:
    """Neighbours that are hashed together; a long document comes alone."""
    start, characters = 0, 0
    for number, text in enumerate(texts):
        if number > start and characters + len(text) > CHUNK_CHARACTERS:
            yield slice(start, number)
            start, characters = number, 0
        characters += len(text) + 1
    if start < len(texts):
        yield slice(start, len(texts))
