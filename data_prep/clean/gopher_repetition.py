"""The repetition rules of Gopher."""

from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.clean.page import Page, duplicates
from data_prep.clean.rule import Dropped, Rule
from runtime.config import key


def _fraction(default: float, meaning: str) -> float:
    value: float = key(default, meaning, ge=0, le=1)
    return value


class GopherRepetition(Rule):
    """Pages that do not repeat their lines, paragraphs and n-grams.

    Fractions are of the page's characters, of lines and of paragraphs. A duplicate is a piece
    that occurred before; characters in overlapping duplicate n-grams count once, and spaces between
    their words do not count.
    """

    source: ClassVar[str] = "Rae et al. 2021, arXiv:2112.11446, table A1"

    rule: Literal["gopher_repetition"] = key("gopher_repetition", "few repeated lines and n-grams")
    max_duplicate_lines: float = _fraction(0.30, "lines that occurred before")
    max_duplicate_paragraphs: float = _fraction(0.30, "paragraphs that occurred before")
    max_duplicate_line_characters: float = _fraction(0.20, "characters in those lines")
    max_duplicate_paragraph_characters: float = _fraction(0.20, "characters in those paragraphs")
    max_top_2gram: float = _fraction(0.20, "characters in the most frequent 2-gram")
    max_top_3gram: float = _fraction(0.18, "characters in the most frequent 3-gram")
    max_top_4gram: float = _fraction(0.16, "characters in the most frequent 4-gram")
    max_duplicate_5grams: float = _fraction(0.15, "characters in duplicate 5-grams")
    max_duplicate_6grams: float = _fraction(0.14, "characters in duplicate 6-grams")
    max_duplicate_7grams: float = _fraction(0.13, "characters in duplicate 7-grams")
    max_duplicate_8grams: float = _fraction(0.12, "characters in duplicate 8-grams")
    max_duplicate_9grams: float = _fraction(0.11, "characters in duplicate 9-grams")
    max_duplicate_10grams: float = _fraction(0.10, "characters in duplicate 10-grams")

    def apply(self, page: Page) -> str | Dropped:
        """The page's text, or the first of its measures that is out of bounds."""
        if not page.text:
            return page.text
        return self._pieces(page) or self._ngrams(page) or page.text

    def _pieces(self, page: Page) -> Dropped | None:
        for name, pieces, most, most_characters in (
            (
                "paragraph",
                page.paragraphs,
                self.max_duplicate_paragraphs,
                self.max_duplicate_paragraph_characters,
            ),
            ("line", page.lines, self.max_duplicate_lines, self.max_duplicate_line_characters),
        ):
            count, characters = duplicates(pieces)
            if count and count / len(pieces) > most:
                return self.above(f"duplicate_{name}s", "fraction", count / len(pieces), most)
            if characters / len(page.text) > most_characters:
                share = characters / len(page.text)
                return self.above(
                    f"duplicate_{name}_characters", "fraction", share, most_characters
                )
        return None

    def _ngrams(self, page: Page) -> Dropped | None:
        total = len(page.text)
        top = {2: self.max_top_2gram, 3: self.max_top_3gram, 4: self.max_top_4gram}
        duplicate = {
            **{5: self.max_duplicate_5grams, 6: self.max_duplicate_6grams},
            **{7: self.max_duplicate_7grams, 8: self.max_duplicate_8grams},
            **{9: self.max_duplicate_9grams, 10: self.max_duplicate_10grams},
        }
        sums = np.zeros(len(page.word_numbers) + 1, np.int64)  # characters before each word
        np.cumsum(page.words.lengths, out=sums[1:])
        for grams in _repeated(page):
            n = grams.n
            if n in top:
                share = _most_frequent(grams, page) / total
                if share > top[n]:
                    return self.above(f"top_{n}gram", "fraction", share, top[n])
            elif _reach(grams, sums) > duplicate[n] * total:
                share = _duplicate(grams, sums) / total
                if share > duplicate[n]:
                    return self.above(f"duplicate_{n}grams", "fraction", share, duplicate[n])
        return None


class _Grams(NamedTuple):
    """The n-grams of one n that occur at least twice."""

    n: int
    starts: NDArray[np.int64]  # (occurrences,), places of their first words, ascending
    numbers: NDArray[np.int64]  # (occurrences,), which n-gram it is
    counts: NDArray[np.int64]  # (different n-grams,)


def _repeated(page: Page) -> Iterator[_Grams]:
    """The repeated n-grams for n = 2 … 10.

    Only where two repeated n-grams overlap can a longer one be repeated, so that each n looks at
    few places. Takes O(words log words) time.
    """
    words, counts = page.word_numbers, page.word_counts
    starts = np.flatnonzero(counts[words] > 1)
    numbers = words[starts]
    for n in range(2, 11):
        if len(starts) < 2:
            return
        followed = np.flatnonzero(starts[1:] == starts[:-1] + 1)
        starts = starts[followed]
        pairs = numbers[followed] * len(counts) + words[starts + (n - 1)]
        _, numbers, found = np.unique(pairs, return_inverse=True, return_counts=True)
        again = found > 1
        kept = again[numbers]
        renumbered = np.cumsum(again) - 1
        starts, numbers = starts[kept], renumbered[numbers[kept]]
        if not len(starts):
            return
        yield _Grams(n, starts, numbers, found[again])


def _most_frequent(grams: _Grams, page: Page) -> int:
    """Characters, spaces inside included, in all occurrences of the most frequent n-gram.

    Of several that are most frequent, the one with most characters.
    """
    words, lasts = page.words, grams.starts + (grams.n - 1)
    spans = words.starts[lasts] + words.lengths[lasts] - words.starts[grams.starts]
    covered = np.bincount(grams.numbers, weights=spans)
    return int(covered[grams.counts == grams.counts.max()].max())


def _reach(grams: _Grams, sums: NDArray[np.int64]) -> int:
    """Characters in all words that belong to a repeated n-gram: no fewer than in duplicates."""
    ends = grams.starts + grams.n
    ends[:-1] = np.minimum(ends[:-1], grams.starts[1:])
    return int((sums[ends] - sums[grams.starts]).sum())


def _duplicate(grams: _Grams, sums: NDArray[np.int64]) -> int:
    """Characters in n-grams that occurred before, read from the left without overlaps."""
    seen: set[int] = set()
    free = total = 0  # the first word that no duplicate holds yet
    for start, number in zip(grams.starts.tolist(), grams.numbers.tolist(), strict=True):
        if start < free:
            continue
        if number in seen:
            free = start + grams.n
            total += int(sums[free] - sums[start])
        seen.add(number)
    return total
