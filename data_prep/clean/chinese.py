"""Rules for Chinese: one script, one width of punctuation, and measures that count characters."""

import functools
import re
import unicodedata
from typing import Any, ClassVar, Literal

import numpy as np

from data_prep.clean.page import Page
from data_prep.clean.rule import Dropped, Rule
from data_prep.clean.words import character_codes, count_han
from runtime.config import key

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TO_FULL = str.maketrans(",!?:;", "，！？：；")
_BRACKETS = re.compile(rf"\((?=[^()（）\n]{{0,200}}\))[^()（）\n{_HAN}]*+[{_HAN}][^()（）\n]*+\)")
_TO_HALF = str.maketrans("，！？：；（）．", ",!?:;().")
# Half-width marks beside a Han character, brackets around one; a period only behind one and before
# no word, since it is also in 3.14 and in names.
_HALF_MARK = re.compile(rf"(?<=[{_HAN}”’）》])[,!?:;]++|(?<![,!?:;])[,!?:;]++(?=[{_HAN}“‘（《])")
_HALF_STOP = re.compile(rf"(?<=[{_HAN}])\.(?![A-Za-z0-9_.])")
_WIDE_ALPHANUMERIC = re.compile("[０-９Ａ-Ｚａ-ｚ]+")
_FULL_MARK = re.compile("[，！？：；（）．]")
_Script = Literal["keep", "simplified", "traditional", "taiwan", "hong_kong"]
_CONVERSIONS = {"simplified": "t2s", "traditional": "s2t", "taiwan": "s2tw", "hong_kong": "s2hk"}


class Chinese(Rule):
    """One script and one width of punctuation; pages with enough Chinese, without repetition.

    With its defaults it only makes punctuation alike. The measures are those that Chinese web
    corpora are cleaned by (length, share of Han, mean line, repeated 13-grams of characters).
    """

    source: ClassVar[str] = "kinds of rules as in Chen et al. 2023, arXiv:2311.01149, section 3"

    rule: Literal["chinese"] = key("chinese", "script, punctuation and measures of Chinese")
    script: _Script = key(
        "keep", "convert characters to one script; taiwan and hong_kong are its local forms"
    )
    punctuation: Literal["keep", "full", "half"] = key(
        "full", "width of , ! ? : ; ( ) beside Han characters; full also makes 。 of their periods"
    )
    digits: Literal["keep", "half"] = key(
        "half", "half: full-width letters and digits, as in ＡＢ１"
    )
    min_characters: int = key(0, "fewest Han characters; 200 suits web pages", ge=0)
    min_han: float = key(
        0.0, "smallest fraction of Han among visible characters; 0.3 suits web pages", ge=0, le=1
    )
    max_symbols: float = key(
        1.0, "largest fraction of symbols (not letters, digits, punctuation); 0.1", ge=0, le=1
    )
    min_mean_line: float = key(
        0.0, "shortest mean line; 10 suits web pages", unit="characters", ge=0
    )
    max_duplicate_13grams: float = key(
        1.0, "largest fraction of 13-grams of characters that occurred before; 0.5", ge=0, le=1
    )

    def apply(self, page: Page) -> str | Dropped:
        """The text in one script and width, or the first measure that is out of bounds."""
        return self._measured(page) or self._converted(page.text)

    def needs(self) -> tuple[str, ...]:
        """The package that converts scripts, when it is asked for."""
        return () if self.script == "keep" else ("OpenCC",)

    def _measured(self, page: Page) -> Dropped | None:
        han = count_han(page.text) if self.min_characters or self.min_han else 0
        if han < self.min_characters:
            return self.below("few_characters", "Han", han, self.min_characters)
        if self.min_han or self.max_symbols < 1:
            visible = max(len(page.text) - sum(map(str.isspace, page.text)), 1)
            if han / visible < self.min_han:
                return self.below("little_han", "fraction", han / visible, self.min_han)
            symbols = count_symbols(page.text) / visible
            if symbols > self.max_symbols:
                return self.above("symbols", "fraction", symbols, self.max_symbols)
        if self.min_mean_line and page.lines:
            mean = sum(map(len, page.lines)) / len(page.lines)
            if mean < self.min_mean_line:
                return self.below("short_lines", "mean", mean, self.min_mean_line)
        if self.max_duplicate_13grams < 1:
            share = duplicate_grams(page.text, 13)
            if share > self.max_duplicate_13grams:
                most = self.max_duplicate_13grams
                return self.above("duplicate_13grams", "fraction", share, most)
        return None

    def _converted(self, text: str) -> str:
        if text.isascii():
            return text
        if self.script != "keep":
            text = str(_converter(_CONVERSIONS[self.script]).convert(text))
        if self.digits == "half":
            text = _WIDE_ALPHANUMERIC.sub(lambda found: _narrow(found.group()), text)
        if self.punctuation == "full":
            text = _HALF_STOP.sub("。", text)
            text = _BRACKETS.sub(lambda found: _in_full_brackets(found.group()), text)
            text = _HALF_MARK.sub(lambda found: found.group().translate(_TO_FULL), text)
        elif self.punctuation == "half":
            text = _FULL_MARK.sub(lambda found: found.group().translate(_TO_HALF), text)
        return text


def count_symbols(text: str) -> int:
    """How many characters are neither white space, letters, digits, accents nor punctuation."""
    return sum(
        text.count(character)
        for character in set(text)
        if unicodedata.category(character)[0] in "SC" and not character.isspace()
    )


def duplicate_grams(text: str, n: int) -> float:
    """The fraction of a text's n-grams of visible characters that occurred before."""
    codes = character_codes("".join(text.split())).astype(np.uint64)
    if len(codes) < n:
        return 0.0
    count = len(codes) - n + 1
    keys = np.zeros(count, np.uint64)
    for at in range(n):  # a polynomial modulo 2**64; the base is odd, so that no place is lost
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + codes[at : at + count] + np.uint64(1)
    return 1 - len(np.unique(keys)) / count


def _in_full_brackets(text: str) -> str:
    return f"（{text[1:-1]}）"


def _narrow(text: str) -> str:
    return "".join(chr(ord(character) - 0xFEE0) for character in text)


@functools.lru_cache(maxsize=8)
def _converter(name: str) -> Any:
    import opencc

    return opencc.OpenCC(name)
