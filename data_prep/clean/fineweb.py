"""The rules that FineWeb added to Gopher's and C4's."""

from typing import ClassVar, Literal

from data_prep.clean.page import Page, duplicates
from data_prep.clean.rule import Dropped, Rule
from runtime.config import key

# By these a sentence ends, in the scripts of most text on the web.
TERMINAL_MARKS = ".!?。．｡！？؟۔।॥።။។։᙮‼‽⁇⁈⁉"


class FineWeb(Rule):
    """Pages of prose: lines that end as sentences do, few short, repeated or one-word lines."""

    source: ClassVar[str] = "Penedo et al. 2024, arXiv:2406.17557, section 3.6"

    rule: Literal["fineweb"] = key("fineweb", "lines that end, are long enough, and differ")
    min_terminal_lines: float = key(
        0.12, "smallest fraction of lines that end with a terminal mark", ge=0, le=1
    )
    terminal_marks: str = key(TERMINAL_MARKS, "the marks by which a sentence ends")
    short_line: int = key(30, "a line of at most so many is short", unit="characters", ge=0)
    max_short_lines: float = key(0.67, "largest fraction of short lines", ge=0, le=1)
    max_duplicate_characters: float = key(
        0.01, "largest fraction of characters in lines that occurred before", ge=0, le=1
    )
    max_newlines_per_word: float = key(0.3, "most line ends per word, marks counted", ge=0)

    def apply(self, page: Page) -> str | Dropped:
        """The page's text, or the first of its measures that is out of bounds."""
        lines = page.lines
        if not lines:
            return self.drop("empty", "lines 0")
        ends = tuple(self.terminal_marks)
        ended = sum(line.endswith(ends) for line in lines) / len(lines)
        if ended < self.min_terminal_lines:
            return self.below("terminal_lines", "fraction", ended, self.min_terminal_lines)
        short = sum(len(line) <= self.short_line for line in lines) / len(lines)
        if short > self.max_short_lines:
            return self.above("short_lines", "fraction", short, self.max_short_lines)
        newlines = page.text.count("\n")
        repeated = duplicates(lines)[1] / (len(page.text) - newlines)
        if repeated > self.max_duplicate_characters:
            most = self.max_duplicate_characters
            return self.above("duplicate_lines", "characters", repeated, most)
        per_word = newlines / max(len(page.words.keys), 1)
        if per_word > self.max_newlines_per_word:
            return self.above("newlines", "per word", per_word, self.max_newlines_per_word)
        return page.text
