"""The definition of a word, against a plain reading of it."""

import random
import unicodedata

import numpy as np
import pytest

from data_prep.clean import words
from data_prep.clean.page import Page, duplicates
from data_prep.clean.words import HAN_BLOCKS, count_han, find_words, split_words


def is_unspaced(character: str) -> bool:
    code = ord(character)
    if any(first <= code <= last for first, last in HAN_BLOCKS):
        return True
    blocks = ((0x3031, 0x30FF), (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF))
    return any(a <= code <= b for a, b in blocks) and unicodedata.category(character)[0] in "LN"


def in_word(character: str) -> bool:
    is_part = unicodedata.category(character)[0] in "LNM" or character == "_"
    return is_part and not is_unspaced(character)


def plain_words(text: str) -> list[str]:
    """The definition, read one character after another."""
    found: list[str] = []
    for chunk in text.split():
        at = 0
        while at < len(chunk):
            end = at + 1
            if is_unspaced(chunk[at]):
                while end < len(chunk) and unicodedata.category(chunk[end])[0] == "M":
                    end += 1
            elif in_word(chunk[at]):
                while end < len(chunk) and (in_word(chunk[end]) or stays_inside(chunk, end)):
                    end += 1
            elif chunk[at] in ".-":
                while end < len(chunk) and chunk[end] == chunk[at]:
                    end += 1
            found.append(chunk[at:end])
            at = end
    return found


def stays_inside(chunk: str, at: int) -> bool:
    """Whether a mark belongs to the word around it."""

    def is_letter(character: str) -> bool:
        return unicodedata.category(character)[0] in "LM"

    def stops(character: str) -> bool:
        is_wide = 0x2E80 <= ord(character) < 0x10000
        return is_unspaced(character) or (is_wide and not in_word(character))

    if stops(chunk[at]):
        return False
    after = next((c for c in chunk[at:] if in_word(c) or stops(c)), "")
    if not after or stops(after):
        return False
    before, behind = chunk[at - 1], chunk[at + 1]
    if chunk[at] in "-‐‑–—,":
        return not (is_letter(before) and is_letter(behind))
    if chunk[at] in ":<>=/":
        return not (before.isalnum() and behind.isalpha())
    return True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't, 3.11 and python.org...", "Don't|,|3.11|and|python.org|..."),
        ("(well-known) and/or std::io ----", "(|well|-|known|)|and|/|or|std::io|----"),
        ("12:30 a=b key: 50% #1", "12:30|a|=|b|key|:|50|%|#|1"),
        ("这是中文，ABC测试。", "这|是|中|文|，|ABC|测|试|。"),
        ("漢字かな交じり Hello世界", "漢|字|か|な|交|じ|り|Hello|世|界"),
        ("snake_case __init__", "snake_case|__init__"),
        ("हिन्दी में", "हिन्दी|में"),
        ("=== a—b", "=|=|=|a|—|b"),
        ("0\U00020000x", "0|\U00020000|x"),
        (" \n\t\u3000 ", ""),
        ("", ""),
    ],
)
def test_what_is_a_word(text: str, expected: str) -> None:
    assert "|".join(split_words(text)) == expected


def test_random_text_has_the_words_of_the_plain_reading() -> None:
    rng = random.Random(5)
    letters = "abZ9_'’.-–,:/=<#()é\u0301中文，。ก\u0e31 \n\u3000ー🙂\x00\u00a0हि"
    for _ in range(3000):
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(25)))
        assert split_words(text) == plain_words(text), repr(text)


def test_a_long_text_is_cut_where_no_word_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    text = "".join(rng.choice("ab-. \n中") for _ in range(3000))
    whole = split_words(text)
    keys = find_words(text).keys
    monkeypatch.setattr(words, "_PIECE", 64)
    words._kept_powers.cache_clear()
    try:
        assert split_words(text) == whole
        assert np.array_equal(find_words(text).keys, keys)
        assert split_words("a" * 300 + " b") == ["a" * 300, "b"]
    finally:
        words._kept_powers.cache_clear()


def test_equal_words_have_equal_keys_and_others_differ() -> None:
    page = Page("the cat The cat eht tac 中文中 a aa aaa")
    names = split_words(page.text)
    of = dict(zip(names, page.word_numbers.tolist(), strict=True))
    assert len(set(of.values())) == len(set(names)) == 10
    assert [page.word_counts[of[word]] for word in ("cat", "the", "中", "aaa")] == [2, 1, 2, 1]


def test_readable_and_alphabetic() -> None:
    found = find_words("one 2 , x3 — 中 …")
    assert found.is_readable.tolist() == [True, True, False, True, False, True, False]
    assert found.is_alphabetic.tolist() == [True, False, False, True, False, True, False]
    assert found.lengths.tolist() == [3, 1, 1, 2, 1, 1, 1]


def test_han_are_counted() -> None:
    assert count_han("abc") == 0
    assert count_han("中文 and 漢字，\U00020001。") == 5


def test_lines_paragraphs_and_duplicates() -> None:
    page = Page("a \n\n  b\n \t\nc\nd\n\n\n")
    assert page.lines == ["a", "  b", "c", "d"]
    assert page.paragraphs == ["a", "b", "c\nd"]
    assert duplicates(["ab", "c", "ab", "ab", "c"]) == (3, 5)
    assert duplicates(["a", "b"]) == (0, 0)
