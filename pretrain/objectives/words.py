"""Where words begin in rows of tokens: by the vocabulary, or in Chinese text by a segmenter."""

import re

import numpy as np
import numpy.typing as npt

from data_prep.tokenizer import SpecialTokens
from pretrain.objectives.segmenter import Cut

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_HAN = re.compile("[\u4e00-\u9fd5]")  # the characters that jieba's dictionary is about


class VocabularyWords:
    """A word is a token with those that continue it: WordPiece's ##, or no space in between."""

    def __init__(self, tokens: SpecialTokens) -> None:
        self._tokens = tokens

    def __call__(self, ids: Ints, segments: Ints) -> Flags:
        """Where words start, for (B, T) ids; what stands before a segment does not matter."""
        return self._tokens.word_starts(ids.flatten()).reshape(ids.shape)


class ChineseWords:
    """As `VocabularyWords`, but next to a Chinese character a segmenter decides.

    The segmenter gets the tokens' texts joined, with a space between words of other scripts, and
    its words are mapped back by counting characters. A token begins a word where the segmenter's
    word begins with it: a token that reaches over the end of one joins it with the next.
    """

    def __init__(self, tokens: SpecialTokens, cut: Cut) -> None:
        self._cut, self._vocabulary = cut, VocabularyWords(tokens)
        self._texts = tokens.texts(np.arange(tokens.vocab_size))
        for number in tokens.special_ids:
            self._texts[number] = "\n"  # a word by itself to every segmenter
        self._begins_han = np.array([bool(_HAN.match(text)) for text in self._texts])
        self._ends_han = np.array([bool(_HAN.match(text[-1:])) for text in self._texts])

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
        is_near = self._begins_han[ids]
        is_near[1:] |= self._ends_han[ids[:-1]]
        if not is_near.any():
            return by_vocabulary
        text, offsets = self._join(ids, by_vocabulary & ~is_near)
        lengths = [len(word) for word in self._cut(text)]
        begins = np.zeros(len(text) + 1, dtype=bool)
        begins[np.cumsum([0, *lengths])] = True
        found: Flags = by_vocabulary & (begins[offsets] | ~is_near)
        return found

    def _join(self, ids: Ints, spaced: Flags) -> tuple[str, Ints]:
        """The text, and where in it each token's own begins; a space before some tokens."""
        parts = []
        for token, has_space in zip(ids.tolist(), spaced.tolist(), strict=True):
            parts += [" " if has_space else "", self._texts[token]]
        ends = np.cumsum([len(part) for part in parts])
        return "".join(parts), ends[::2]
