"""Samples and vocabularies made by hand, for objectives without a loader and a tokenizer."""

from collections.abc import Sequence

import numpy as np

from data_prep.samples import Sample, Segment
from pretrain.objectives.masking import Masker, Vocabulary
from pretrain.sections import Masking

PAD, UNK, CLS, SEP, MASK = range(5)  # as BERT numbers its special tokens here
VOCAB = 1000


def vocabulary(size: int = VOCAB) -> Vocabulary:
    special = np.zeros(size, dtype=bool)
    special[:5] = True
    return Vocabulary(MASK, special, np.arange(5, size))


def segment(
    tokens: Sequence[int], document: int = 0, ends: Sequence[int] = (), previous: int | None = None
) -> Segment:
    return Segment(
        np.array(tokens, dtype=np.int64), previous, 0, document, np.array(ends, dtype=np.int64)
    )


def texts(lengths: Sequence[int], seed: int = 0, size: int = VOCAB) -> list[Segment]:
    """Segments of random ordinary tokens."""
    rng = np.random.default_rng(seed)
    return [segment(rng.integers(5, size, n), document=i) for i, n in enumerate(lengths)]


def sample(index: int | None, *segments: Segment) -> Sample:
    return Sample(index, tuple(segments))


def row(lengths: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One row (1, T) of [CLS] text [SEP] …, and the numbers of its segments."""
    ids, numbers = [], []
    for number, text in enumerate(texts(lengths, seed)):
        ids += [CLS, *text.tokens, SEP]
        numbers += [-1, *[number] * len(text.tokens), -1]
    return np.array([ids]), np.array([numbers])


def masker(seed: int = 0, find_words=None, **keys) -> Masker:
    return Masker(Masking(**keys), vocabulary(), find_words, seed)
