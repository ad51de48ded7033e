"""The quality rules of Gopher."""

from typing import ClassVar, Literal

import numpy as np
import pydantic

from data_prep.clean.page import Page
from data_prep.clean.rule import Dropped, Rule
from data_prep.clean.words import split_words, word_keys
from runtime.config import key

_BULLETS = ("•", "-", "*", "·", "‣", "◦")
_ELLIPSES = ("...", "…")


class GopherQuality(Rule):
    """Pages of a plausible length, made of words rather than of symbols, lists and stubs."""

    source: ClassVar[str] = "Rae et al. 2021, arXiv:2112.11446, appendix A.1.1"

    rule: Literal["gopher_quality"] = key("gopher_quality", "quality of words and lines")
    min_words: int = key(50, "fewest words, marks not counted", ge=0)
    max_words: int = key(100_000, "most words, marks not counted", ge=1)
    min_mean_word_length: float = key(
        3.0, "shortest mean word, marks not counted; 1 for Chinese", unit="characters", ge=0
    )
    max_mean_word_length: float = key(10.0, "longest mean word", unit="characters", ge=0)
    max_hashes_per_word: float = key(0.1, "most # per word, marks counted", ge=0)
    max_ellipses_per_word: float = key(0.1, "most ... and … per word, marks counted", ge=0)
    max_bullet_lines: float = key(
        0.9, "largest fraction of lines that begin with a bullet", ge=0, le=1
    )
    max_ellipsis_lines: float = key(
        0.3, "largest fraction of lines that end with an ellipsis", ge=0, le=1
    )
    min_alphabetic_words: float = key(
        0.8, "smallest fraction of words, marks counted, that have a letter", ge=0, le=1
    )
    min_stop_words: int = key(2, "fewest different stop words; 0 for other languages", ge=0)
    stop_words: tuple[str, ...] = key(
        ("the", "be", "to", "of", "and", "that", "have", "with"), "the stop words, in lower case"
    )

    @pydantic.field_validator("stop_words")
    @classmethod
    def _are_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            if split_words(word) != [word]:
                raise ValueError(
                    f"{word!r} is not one word (a Han character is one); leave it out or split it"
                )
        return tuple(dict.fromkeys(value))

    def apply(self, page: Page) -> str | Dropped:
        """The page's text, or the first of its measures that is out of bounds."""
        return self._words(page) or self._symbols(page) or self._lines(page) or page.text

    def _words(self, page: Page) -> Dropped | None:
        count = int(page.words.is_readable.sum())
        if count < self.min_words:
            return self.below("few_words", "words", count, self.min_words)
        if count > self.max_words:
            return self.above("many_words", "words", count, self.max_words)
        if not count:
            return None
        mean = int(page.words.lengths[page.words.is_readable].sum()) / count
        if mean < self.min_mean_word_length:
            return self.below("short_words", "mean length", mean, self.min_mean_word_length)
        if mean > self.max_mean_word_length:
            return self.above("long_words", "mean length", mean, self.max_mean_word_length)
        return None

    def _symbols(self, page: Page) -> Dropped | None:
        count = max(len(page.words.keys), 1)
        hashes = page.text.count("#") / count
        if hashes > self.max_hashes_per_word:
            return self.above("hashes", "per word", hashes, self.max_hashes_per_word)
        ellipses = sum(map(page.text.count, _ELLIPSES)) / count
        if ellipses > self.max_ellipses_per_word:
            return self.above("ellipses", "per word", ellipses, self.max_ellipses_per_word)
        alphabetic = int(page.words.is_alphabetic.sum()) / count
        if alphabetic < self.min_alphabetic_words:
            least = self.min_alphabetic_words
            return self.below("few_alphabetic_words", "fraction", alphabetic, least)
        found = int(np.isin(word_keys(self.stop_words), page.words.keys).sum())
        if found < self.min_stop_words:
            return self.below("few_stop_words", "different", found, self.min_stop_words)
        return None

    def _lines(self, page: Page) -> Dropped | None:
        count = max(len(page.lines), 1)
        bullets = sum(line.lstrip().startswith(_BULLETS) for line in page.lines) / count
        if bullets > self.max_bullet_lines:
            return self.above("bullet_lines", "fraction", bullets, self.max_bullet_lines)
        ellipses = sum(line.endswith(_ELLIPSES) for line in page.lines) / count
        if ellipses > self.max_ellipsis_lines:
            return self.above("ellipsis_lines", "fraction", ellipses, self.max_ellipsis_lines)
        return None
