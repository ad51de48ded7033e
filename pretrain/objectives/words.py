"""Where words begin in rows of tokens: by the vocabulary, or in Chinese text by a segmenter."""

import re

import numpy as np
import numpy.typing as npt

from data_prep.tokenizer import SpecialTokens
from pretrain.objectives.segmenter import Cut

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_HAN = re.compile(rb"(?:[\xe4-\xe9][\x80-\xbf]{2})+")  # U+4000 to U+9FFF in UTF-8
_HAN_BEGINS = re.compile(rb"[\xe4-\xe9]")
_BYTE_BY_BYTE = "surrogateescape"  # how to read what is no UTF-8, such as half a character


class VocabularyWords:
    """A word is a token with those that continue it: WordPiece's ##, or no space in between."""

    def __init__(self, tokens: SpecialTokens) -> None:
        self._tokens = tokens

    def __call__(self, ids: Ints, segments: Ints) -> Flags:
        """Where words start, for (B, T) ids; what stands before a segment does not matter."""
        return self._tokens.word_starts(ids.flatten()).reshape(ids.shape)


class ChineseWords:
    """As `VocabularyWords`, but next to a Chinese character a segmenter decides.

    The segmenter gets the text that the tokens write, with a space between words of other scripts
    where the tokens have none; its words are mapped back by counting bytes, for a byte-level token
    may cut characters. A token begins a word where the segmenter's word begins with it: a token
    that reaches over the end of one joins it with the next.
    """

    def __init__(self, tokens: SpecialTokens, cut: Cut) -> None:
        self._cut, self._vocabulary = cut, VocabularyWords(tokens)
        self._texts = tokens.utf8(np.arange(tokens.vocab_size))
        for number in tokens.special_ids:
            self._texts[number] = b"\n"  # a word by itself to every segmenter
        self._may_have_han = np.array([bool(_HAN_BEGINS.search(text)) for text in self._texts])
        self._sizes = np.array([len(text) for text in self._texts])

    def __call__(self, ids: Ints, segments: Ints) -> Flags:
        """Where words start, for (B, T) ids; each segment is read by itself."""
        starts = self._vocabulary(ids, segments)
        flat, numbers, flags = ids.flatten(), segments.flatten(), starts.reshape(-1)
        edges = np.flatnonzero(np.diff(numbers)) + 1
        for begin, end in zip([0, *edges], [*edges, len(flat)], strict=True):
            if numbers[begin] >= 0:
                flags[begin:end] = self.starts(flat[begin:end], flags[begin:end])
        return starts

    def starts(self, ids: Ints, by_vocabulary: Flags) -> Flags:
        """Where words start in one text. (n,), (n,) → (n,)"""
        if not self._may_have_han[ids].any():
            return by_vocabulary
        parts = [self._texts[token] for token in ids.tolist()]
        at = np.cumsum(self._sizes[ids]) - self._sizes[ids]  # where each token begins
        han = _han(b"".join(parts))
        is_near = han[at] | han[at - 1]
        spaced = by_vocabulary & ~is_near
        text = b"".join(
            b" " + part if space else part for part, space in zip(parts, spaced, strict=True)
        )
        begins = np.zeros(len(text) + 1, dtype=bool)
        words = self._cut(text.decode("utf-8", _BYTE_BY_BYTE))
        begins[np.cumsum([0, *(len(word.encode("utf-8", _BYTE_BY_BYTE)) for word in words)])] = True
        found: Flags = by_vocabulary & (begins[at + np.cumsum(spaced)] | ~is_near)
        return found


def _han(text: bytes) -> Flags:
    """Which bytes are of Chinese characters; one False more, which also stands before the text."""
    flags = np.zeros(len(text) + 1, dtype=bool)
    for run in _HAN.finditer(text):
        flags[run.start() : run.end()] = True
    return flags
