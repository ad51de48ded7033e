"""Lines left out by what stands in them."""

from typing import Any, ClassVar, Literal

import numpy as np
import pydantic

from data_prep.clean.expressions import REACH, check_expression, compiled
from data_prep.clean.page import Page
from data_prep.clean.rule import Dropped, Rule
from data_prep.clean.words import find_words
from runtime.config import key


class Lines(Rule):
    """Drops lines; and pages of which too much was dropped."""

    source: ClassVar[str] = "line rules as in Penedo et al. 2023, arXiv:2306.01116, appendix G.2"

    rule: Literal["lines"] = key("lines", "leaves out lines; blank lines stay")
    drop_matching: tuple[str, ...] = key(
        (), f"regular expressions; lines in whose first {REACH:,} characters one is found go"
    )
    min_characters: int = key(0, "drop shorter lines", unit="characters", ge=0)
    max_characters: int | None = key(None, "drop longer lines", unit="characters", ge=1)
    min_words: int = key(0, "drop lines of fewer words, marks not counted", ge=0)
    max_uppercase: float = key(
        1.0, "drop lines with a larger fraction of capitals among their letters", ge=0, le=1
    )
    max_digits: float = key(
        1.0,
        "drop lines with a larger fraction of digits among their visible characters",
        ge=0,
        le=1,
    )
    duplicates: Literal["keep", "drop"] = key("keep", "drop: only a line's first occurrence stays")
    max_dropped_words: float = key(
        1.0, "drop pages that lost a larger fraction of their words", ge=0, le=1
    )

    @pydantic.field_validator("drop_matching", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.field_validator("drop_matching")
    @classmethod
    def _can_be_matched(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_expression, value))

    def apply(self, page: Page) -> str | Dropped:
        """The lines that stay, or why the page is dropped."""
        kept: list[str] = []
        seen: set[str] = set()
        expressions = [compiled(text) for text in self.drop_matching]
        lines = page.text.split("\n")
        words = self._words(page, lines)
        for line, has_words in zip(lines, words, strict=True):
            bare = line.strip()
            if bare:
                if any(pattern.search(line, 0, REACH) for pattern in expressions):
                    continue
                if (
                    not has_words
                    or self._is_unfit(bare)
                    or (self.duplicates == "drop" and bare in seen)
                ):
                    continue
                seen.add(bare)
            kept.append(line)
        if len(kept) == len(lines):
            return page.text
        text = "\n".join(kept)
        if self.max_dropped_words < 1:
            before = max(len(page.words.keys), 1)
            lost = 1 - len(find_words(text).keys) / before
            if lost > self.max_dropped_words:
                return self.above("dropped_words", "fraction", lost, self.max_dropped_words)
        return text

    def _words(self, page: Page, lines: list[str]) -> list[bool]:
        """Whether each line has enough words; no word goes over the end of a line."""
        if not self.min_words:
            return [True] * len(lines)
        ends = np.cumsum([len(line) + 1 for line in lines])
        before = np.concatenate(([0], np.cumsum(page.words.is_readable)))
        reached = before[np.searchsorted(page.words.starts, ends)]
        enough: list[bool] = (np.diff(reached, prepend=0) >= self.min_words).tolist()
        return enough

    def _is_unfit(self, line: str) -> bool:
        if len(line) < self.min_characters:
            return True
        if self.max_characters is not None and len(line) > self.max_characters:
            return True
        if self.max_digits < 1:
            visible = sum(not character.isspace() for character in line)
            if sum(map(str.isdigit, line)) > self.max_digits * visible:
                return True
        if self.max_uppercase < 1:
            letters = sum(map(str.isalpha, line))
            return sum(map(str.isupper, line)) > self.max_uppercase * letters
        return False
