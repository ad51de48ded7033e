"""The line and page rules of C4."""

import re
from pathlib import Path
from typing import ClassVar, Literal

from data_prep.clean.page import Page
from data_prep.clean.rule import Dropped, Rule
from data_prep.clean.word_lists import listed, matcher
from data_prep.clean.words import count_han
from runtime.config import key

_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
# A period behind a single letter ("e.g.", initials) ends no sentence.
_SENTENCE_END = re.compile(
    r"(?:(?<!\b\w)\.|[!?])[\"'”’)\]]*\s+(?=\S)|[。！？][。！？”’」』）]*(?=[^。！？”’」』）])"
)


class C4(Rule):
    """Lines that are sentences, on pages with enough of them.

    Lines are looked at in the order of the published code: a page is dropped for what stands in a
    line that would be kept, not for what stands in its menus.
    """

    source: ClassVar[str] = "Raffel et al. 2020, JMLR 21(140), section 2.2, and its published code"

    rule: Literal["c4"] = key("c4", "keeps the lines that are sentences")
    require_terminal_mark: bool = key(
        True, "drop lines that end with no terminal mark, or with an ellipsis"
    )
    terminal_marks: str = key(".!?\"'”’。！？」』", "the marks that a line may end with")
    min_words_per_line: int = key(
        3, "drop lines of fewer words: pieces between spaces, and each Han character", ge=0
    )
    max_word_length: int = key(
        1000, "drop lines with a longer piece between spaces", unit="characters", ge=1
    )
    remove_citations: bool = key(True, "take out [1], [edit] and [citation needed]")
    drop_line_phrases: tuple[str, ...] = key(
        (
            *("javascript", "terms of use", "privacy policy", "cookie policy"),
            *("uses cookies", "use of cookies", "use cookies"),
        ),
        "drop lines with one of these, in any case",
    )
    drop_page_phrases: tuple[str, ...] = key(
        ("lorem ipsum", "{"), "drop pages that keep a line with one of these, in any case"
    )
    bad_words: str | None = key(
        None, "file of words and phrases, one a line; a page with one of them is dropped"
    )
    min_sentences: int = key(5, "fewest sentences in the lines that are kept", ge=0)

    def apply(self, page: Page) -> str | Dropped:
        """The lines that are kept, or why the page is dropped."""
        kept: list[str] = []
        sentences = 0
        ends = tuple(self.terminal_marks)
        line_phrases = tuple(phrase.lower() for phrase in self.drop_line_phrases)
        page_phrases = tuple(phrase.lower() for phrase in self.drop_page_phrases)
        for raw in page.text.splitlines():
            line = self._kept(raw.strip(), ends)
            if not line:
                continue
            lowered = line.lower()
            if any(phrase in lowered for phrase in line_phrases):
                continue
            for phrase in page_phrases:
                if phrase in lowered:
                    return self.drop("page_phrase", f"contains {phrase!r}")
            sentences += 1 + len(_SENTENCE_END.findall(line))
            kept.append(line)
        if sentences < self.min_sentences:
            return self.below("few_sentences", "sentences", sentences, self.min_sentences)
        text = "\n".join(kept)
        if self.bad_words is not None:
            found = matcher(listed(self.bad_words)).search(text.lower())
            if found:
                return self.drop("bad_word", f"contains {found.group()!r}")
        return text

    def files(self) -> tuple[Path, ...]:
        """The list of bad words."""
        return () if self.bad_words is None else (Path(self.bad_words),)

    def _kept(self, line: str, ends: tuple[str, ...]) -> str:
        """A line without its citations, or nothing where it is to be dropped."""
        if len(line) > self.max_word_length and max(map(len, line.split())) > self.max_word_length:
            return ""
        if self.remove_citations and "[" in line:
            line = _CITATION.sub("", line).rstrip()
        if self.require_terminal_mark and (not line.endswith(ends) or line.endswith("...")):
            return ""
        if self.min_words_per_line and not _has_words(line, self.min_words_per_line):
            return ""
        return line


def _has_words(line: str, least: int) -> bool:
    """Whether a line has so many pieces between spaces, each Han character counted as one."""
    return len(line.split()) >= least or count_han(line) >= least
