"""Which tokens are hidden, and what stands in their place: BERT's, whole-word and span masking.

A batch is masked at once, in numpy, without a loop over its words: masking keeps up with a GPU.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.collate import IGNORED
from pretrain.objectives.draws import Bits, Draws, to_uniform
from pretrain.sections import Masking

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
FindWords = Callable[[Ints, Ints], Flags]  # ids (B, T), segments (B, T) → where words start (B, T)

LONGEST_SPAN = 10  # words (Joshi et al. 2020, §3.1)
_LOW = np.uint64(0xFFFFFFFF)


class Vocabulary(NamedTuple):
    """What masking must know of a tokenizer."""

    mask_id: int
    is_special: Flags  # (V,) never hidden, never put in place of another
    ordinary: Ints  # the ids that a random token is drawn from: all that exist and are not special


class Masker:
    """Hides a fixed share of every segment's tokens.

    As many as round(fraction · tokens of the segment), at least one. In units of words or spans
    the number comes as near to that as whole words let it: units are taken in random order, and
    the word that passes the budget is taken too where that is nearer. Spans (Joshi et al. 2020,
    "SpanBERT"): the segment is tiled with spans of a geometric number of words and some of the
    tiles are taken; the last one is cut short, at a word, to keep to the budget.

    Of the chosen tokens `mask_fraction` become [MASK], `random_fraction` a random token, the rest
    stays (Devlin et al. 2019). That is drawn for each token by itself, in whole words too, as in
    Google's whole-word BERT; for spans once for all tokens of a span, as in SpanBERT.
    """

    def __init__(
        self, masking: Masking, vocabulary: Vocabulary, find_words: FindWords | None, seed: int
    ) -> None:
        self._masking, self._vocabulary = masking, vocabulary
        self._find_words = find_words
        self._draws, self._span_draws = Draws(seed, "masking"), Draws(seed, "spans")
        self._span_ends = np.cumsum(span_lengths(masking.mean_span))[:-1]

    def __call__(
        self, ids: Ints, segments: Ints, samples: Sequence[int | None]
    ) -> tuple[Ints, Ints]:
        """Hide tokens of (B, T) ids; returns inputs and targets, −100 where nothing is hidden.

        segments: (B, T), rising; the number of each token's segment, −1 where none may be hidden.
        samples: (B,) sample numbers, of which alone (and of the ids) the choice depends.
        """
        columns = ids.shape[1]
        order, fate, other = self._random_words(samples, columns)
        may = (segments >= 0) & ~self._vocabulary.is_special[ids]
        places = np.flatnonzero(may)  # of the flattened batch
        if not len(places):
            return ids.copy(), np.full_like(ids, IGNORED)
        starts = self._word_starts(ids, segments, may)[places]
        units = starts
        if self._masking.unit == "span":
            units = self._span_starts(starts, segments.flat[places], places // columns, samples)
        # What belongs together shares the draw of its first token.
        first = places[np.maximum.accumulate(np.where(units, np.arange(len(places)), 0))]
        hidden = choose(segments.flat[places], starts, order.flat[first], self._masking.fraction)
        decided_by = first if self._masking.unit == "span" else places
        chosen = places[hidden]
        return self._replace(ids, chosen, fate.flat[decided_by[hidden]], other.flat[chosen])

    def _random_words(self, samples: Sequence[int | None], columns: int) -> tuple[Bits, Bits, Bits]:
        """Three (B, T) arrays of random bits: 32 to sort by, 32 for the fate, 64 for the token."""
        bits = np.zeros((len(samples), 2, columns), dtype=np.uint64)
        for row, sample in enumerate(samples):
            if sample is not None:
                bits[row] = self._draws.bits(sample, 2 * columns).reshape(2, columns)
        return bits[:, 0] >> np.uint64(32), bits[:, 0] & _LOW, np.ascontiguousarray(bits[:, 1])

    def _word_starts(self, ids: Ints, segments: Ints, may: Flags) -> Flags:
        """Where a word begins among the tokens that may be hidden. Flattened (B·T,)."""
        if self._masking.unit == "token" or self._find_words is None:
            return np.ones(ids.size, dtype=bool)
        starts = self._find_words(ids, segments).flatten()
        # A word ends where its segment does, and at a token that may not be hidden.
        flat, numbers = may.flatten(), segments.flatten()
        starts[0] = True
        starts[1:] |= ~flat[:-1] | (numbers[1:] != numbers[:-1])
        return starts

    def _span_starts(
        self, starts: Flags, segments: Ints, rows: Ints, samples: Sequence[int | None]
    ) -> Flags:
        """Which words begin a tile, among the tokens that may be hidden. (n,)"""
        first = np.flatnonzero(starts)
        words = np.bincount(rows[first], minlength=len(samples))
        tiles = np.zeros(len(first), dtype=bool)
        end = 0
        for sample, count in zip(samples, words.tolist(), strict=True):
            begin, end = end, end + count
            if sample is not None and count:
                tiles[begin:end] = self._tile(sample, count)
        owner = segments[first]
        tiles[1:] |= owner[1:] != owner[:-1]
        tiles[0] = True
        found = np.zeros_like(starts)
        found[first[tiles]] = True
        return found

    def _tile(self, sample: int, words: int) -> Flags:
        """Where spans begin when so many words are tiled with them. (words,)"""
        chance = self._span_draws.uniform(sample, 1 + words + LONGEST_SPAN)
        lengths = 1 + np.searchsorted(self._span_ends, chance[1:], side="right")
        # The tiles begin before the words, so that no place is likelier to begin one.
        begin = np.cumsum(lengths) - lengths - int(chance[0] * LONGEST_SPAN)
        flags = np.zeros(words, dtype=bool)
        flags[begin[(begin >= 0) & (begin < words)]] = True
        return flags

    def _replace(self, ids: Ints, chosen: Ints, fate: Bits, other: Bits) -> tuple[Ints, Ints]:
        inputs, targets = ids.copy(), np.full_like(ids, IGNORED)
        targets.flat[chosen] = ids.flat[chosen]
        share = fate.astype(np.float64) * 2.0**-32
        masked = share < self._masking.mask_fraction
        inputs.flat[chosen[masked]] = self._vocabulary.mask_id
        kept_from = self._masking.mask_fraction + self._masking.random_fraction
        random = ~masked & (share < kept_from)
        ordinary = self._vocabulary.ordinary
        drawn = (to_uniform(other[random]) * len(ordinary)).astype(np.int64)
        inputs.flat[chosen[random]] = ordinary[drawn]
        return inputs, targets


def choose(segments: Ints, starts: Flags, order: Bits, fraction: float) -> Flags:
    """Choose whole words, unit by unit in random order, up to each segment's budget.

    segments: (n,) rising numbers; starts: (n,) where a word begins; order: (n,) random 32 bits,
    equal for all words of a unit. Returns (n,) which tokens are chosen.
    """
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=len(starts))
    owner = segments[first]
    # Words of one unit stay in their order: the sort is stable.
    key = (owner.astype(np.uint64) << np.uint64(32)) | order[first]
    turn = np.argsort(key, kind="stable")
    lengths, owner = lengths[turn], owner[turn]
    sizes = np.bincount(segments)
    budget = np.maximum(1, np.floor(fraction * sizes + 0.5).astype(np.int64))[owner]
    after = np.cumsum(lengths) - (np.cumsum(sizes) - sizes)[owner]  # tokens of the segment so far
    before = after - lengths
    is_nearer = (after - budget < budget - before) | (before == 0)
    taken = (after <= budget) | ((before < budget) & is_nearer)
    words = np.zeros(len(first), dtype=bool)
    words[turn] = taken
    chosen: Flags = words[np.cumsum(starts) - 1]
    return chosen


def span_lengths(mean: float) -> npt.NDArray[np.float64]:
    """Probabilities of the lengths 1 … 10: geometric, cut off, with the given mean. (10,)"""
    lengths = np.arange(1, LONGEST_SPAN + 1)
    low, high = 0.0, 1.0  # probability of ending after each word; the mean falls as it rises
    weights: npt.NDArray[np.float64] = np.ones(LONGEST_SPAN)
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.power(1 - middle, lengths - 1.0)
        weights = weights / weights.sum()
        if (weights * lengths).sum() > mean:
            low = middle
        else:
            high = middle
    return weights
