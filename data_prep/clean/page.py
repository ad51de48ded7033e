"""One document as the rules see it: its words, lines and paragraphs, each computed once."""

import re
from collections import Counter
from functools import cached_property

import numpy as np

from data_prep.clean.words import Integers, Words, find_words

_PARAGRAPH_END = re.compile(r"\n(?:[^\S\n]*\n)+")


class Page:
    """A document's text and where it is from, and what several rules need to know of it."""

    def __init__(self, text: str, url: str = "") -> None:
        self.text, self.url = text, url

    @cached_property
    def words(self) -> Words:
        """All words, marks included; `words.py` says what they are."""
        return find_words(self.text)

    @cached_property
    def word_numbers(self) -> Integers:
        """Each word as its place among the different words, (words,)."""
        return self._numbered[0]

    @cached_property
    def word_counts(self) -> Integers:
        """How often each of the different words occurs, (different words,)."""
        return self._numbered[1]

    @cached_property
    def _numbered(self) -> tuple[Integers, Integers]:
        _, numbers, counts = np.unique(self.words.keys, return_inverse=True, return_counts=True)
        return numbers, counts

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank, without white space at their ends."""
        return [line for line in map(str.rstrip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines separate, without white space around."""
        pieces = map(str.strip, _PARAGRAPH_END.split(self.text))
        return [piece for piece in pieces if piece]


def duplicates(pieces: list[str]) -> tuple[int, int]:
    """How many pieces occurred before, and their characters."""
    if len(set(pieces)) == len(pieces):
        return 0, 0
    repeated = [(len(piece), count - 1) for piece, count in Counter(pieces).items() if count > 1]
    return sum(count for _, count in repeated), sum(size * count for size, count in repeated)
