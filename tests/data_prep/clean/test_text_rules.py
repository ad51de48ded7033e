"""Normalisation, HTML, language, URLs, Chinese; hostile input for every rule."""

import importlib.util
import logging
import random
import time
from pathlib import Path

import pytest

from data_prep.clean import Cleaner, Rule
from data_prep.clean.chinese import Chinese, duplicate_grams
from data_prep.clean.html import Html, looks_like_html
from data_prep.clean.language import Language, detect, sample
from data_prep.clean.lines import Lines
from data_prep.clean.normalize import Normalize
from data_prep.clean.page import Page
from data_prep.clean.rules import RULES
from data_prep.clean.url import Url, host_of
from tests.data_prep.clean.samples import cleaned, outcome


@pytest.mark.parametrize(
    ("keys", "text", "expected"),
    [
        ({}, "cafe\u0301", "café"),
        ({"form": "none"}, "cafe\u0301", "cafe\u0301"),
        ({}, "ﬁ Ａ ²", "ﬁ Ａ ²"),
        ({"form": "NFKC"}, "ﬁ Ａ ²", "fi A 2"),
        ({}, "It doesnâ€™t matter\nschÃ¶n", "It doesn’t matter\nschön"),
        ({"mojibake": False}, "doesnâ€™t", "doesnâ€™t"),
        ({}, "São Paulo, naïve, Ångström", "São Paulo, naïve, Ångström"),
        ({}, "a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ({"line_ends": False}, "a\r\nb", "a\r\nb"),
        ({}, "a\x00b\x07\tc\x1b[0m", "ab\tc[0m"),
        ({}, "zero\u200bwidth\ufeff so\u00adft", "zerowidth soft"),
        ({}, "می\u200cخواهم 👨\u200d👩\u200d👧", "می\u200cخواهم 👨\u200d👩\u200d👧"),
        ({}, "x\u200d y", "x y"),
        ({"zero_width": False}, "a\u200bb", "a\u200bb"),
        ({}, "plain ASCII text", "plain ASCII text"),
    ],
)
def test_normalize(keys: dict, text: str, expected: str) -> None:
    assert cleaned(Normalize(**keys), text) == expected


@pytest.mark.parametrize(
    "rule", [Normalize(), Normalize(form="NFKC"), Chinese(), Chinese(punctuation="half")]
)
def test_twice_is_once(rule: Rule) -> None:
    rng = random.Random(8)
    letters = "aé\u0301â€™Ã¶\u0080\u200b\u200d\r\n \x00中文，,.:()（）“”！ﬁＡ１ö\u00a0\u2028\ufeff"
    for _ in range(1500):
        text = "z" + "".join(rng.choice(letters) for _ in range(rng.randrange(1, 14)))
        once = cleaned(rule, text)
        assert once is not None
        assert cleaned(rule, once) == once, repr(text)


PAGE = """<!DOCTYPE html><html><head><title>T</title><script>var x = 1;</script></head><body>
<nav><a href="/">Home</a> <a href="/about">About us</a></nav>
<article><h1>On bridges</h1><p>The old bridge over the river was built in three years by masons
who came from far away, and it has stood ever since.</p><p>Nobody knows who paid for it, though
many stories are told about that in the town.</p></article>
<footer>Copyright, all rights reserved</footer></body></html>"""


def has_html() -> bool:
    """Whether the extra is whole: lxml's sanitiser is a package of its own."""
    return all(map(importlib.util.find_spec, ("trafilatura", "lxml_html_clean")))


needs_html = pytest.mark.skipif(not has_html(), reason="lxml_html_clean is not installed")


@needs_html
def test_html_gives_its_main_text() -> None:
    text = cleaned(Html(), PAGE)
    assert text is not None
    assert "masons" in text
    assert "many stories" in text
    assert not any(part in text for part in ("<p>", "var x", "About us"))


def test_html_leaves_other_text_alone() -> None:
    for text in ("Plain prose.", "Use `<p>` and <div> in HTML.", "if a < b: print(c > d)"):
        assert not looks_like_html(text)
        assert Html().apply(Page(text)) == text
    assert looks_like_html(PAGE)
    assert looks_like_html("<div><p>a</p><p>b</p></div>")


@needs_html
def test_html_without_text() -> None:
    assert outcome(Html(), "<html><body></body></html>") == "no_text"


def test_language() -> None:
    english = "The committee met on Tuesday and decided that the bridge should be repaired soon."
    chinese = "委员会星期二开会，决定尽快修复这座桥梁，并且要求有关部门负责监督工程的质量。"
    assert detect(english)[0] == "en"
    assert detect(chinese)[0] == "zh"
    assert outcome(Language(keep=("en",)), english) == "kept"
    assert outcome(Language(keep=("en",)), chinese) == "other_language"
    assert outcome(Language(keep=("zh", "en")), chinese) == "kept"
    confidence = detect(english)[1]
    for least, expected in ((confidence - 0.001, "kept"), (min(confidence + 1e-4, 1), "uncertain")):
        assert outcome(Language(keep=("en",), min_confidence=least), english) == expected


def test_a_long_text_is_judged_on_pieces_of_all_of_it() -> None:
    text = "a" * 10_000 + "b" * 10_000
    assert len(sample(text)) == 4003
    assert sample(text).startswith("a" * 1000)
    assert sample(text).endswith("b" * 1000)
    assert sample("short") == "short"


def test_urls(tmp_path: Path) -> None:
    listed = tmp_path / "domains.txt"
    listed.write_text("# bad ones\nSpam.example  # says all\n例子.com\n", encoding="utf-8")
    rule = Url(domains=("bad.org",), domains_file=str(listed), substrings=("/Casino",))
    for url, expected in (
        ("https://bad.org/x", "domain"),
        ("http://user@www.BAD.org.:8080/x", "domain"),
        ("https://notbad.org/bad.org", "kept"),
        ("bad.org/path", "domain"),
        ("https://a.spam.example", "domain"),
        ("https://例子.com/", "domain"),
        ("https://good.org/casino", "substring"),
        ("https://good.org/", "kept"),
        ("http://[broken", "kept"),
        ("", "kept"),
    ):
        assert outcome(rule, "text", url) == expected, url
    assert outcome(Url(missing="drop"), "text") == "no_url"
    assert host_of("https://Example.ORG:443/x?y#z") == "example.org"
    listed = tmp_path / "empty.txt"
    listed.write_text("# nothing\n")
    with pytest.raises(ValueError, match="has no entries"):
        Url(domains_file=str(listed))


@pytest.mark.parametrize(
    ("keys", "text", "expected"),
    [
        ({}, "你好,世界!(很好)对吗?", "你好，世界！（很好）对吗？"),
        ({}, "价格是3.14元,见a.b.", "价格是3.14元，见a.b."),
        ({}, "他走了.她没走.", "他走了。她没走。"),
        ({}, "only English, with (marks)!", "only English, with (marks)!"),
        ({}, "ＡＢ１２中", "AB12中"),
        ({"punctuation": "half"}, "你好，世界！", "你好,世界!"),
        ({"punctuation": "keep", "digits": "keep"}, "你好,Ａ", "你好,Ａ"),
        ({"script": "simplified"}, "漢語與電腦", "汉语与电脑"),
        ({"script": "traditional"}, "汉语与电脑", "漢語與電腦"),
    ],
)
def test_chinese_text(keys: dict, text: str, expected: str) -> None:
    assert cleaned(Chinese(**keys), text) == expected


@pytest.mark.parametrize(
    ("keys", "text", "expected"),
    [
        ({"min_characters": 4}, "四个汉字, yes", "kept"),
        ({"min_characters": 5}, "四个汉字, yes", "few_characters"),
        ({"min_han": 0.4}, "四个汉字 abcdef", "kept"),  # 4 / 10
        ({"min_han": 0.41}, "四个汉字 abcdef", "little_han"),
        ({"max_symbols": 0.2}, "四个汉字★", "kept"),
        ({"max_symbols": 0.19}, "四个汉字★", "symbols"),
        ({"min_mean_line": 3}, "四个汉字\n\n两个", "kept"),
        ({"min_mean_line": 3.1}, "四个汉字\n\n两个", "short_lines"),
        ({"max_duplicate_13grams": 0.5}, "甲乙丙丁戊己庚辛壬癸子丑寅" * 2, "kept"),
        ({"max_duplicate_13grams": 0.5}, "甲乙丙丁戊己庚辛壬癸子丑寅" * 4, "duplicate_13grams"),
    ],
)
def test_chinese_measures(keys: dict, text: str, expected: str) -> None:
    assert outcome(Chinese(**keys), text) == expected


def test_duplicate_grams_against_a_set() -> None:
    rng = random.Random(9)
    text = "".join(rng.choice("甲乙 丙\n") for _ in range(400))
    visible = "".join(text.split())
    grams = [visible[at : at + 5] for at in range(len(visible) - 4)]
    assert duplicate_grams(text, 5) == pytest.approx(1 - len(set(grams)) / len(grams))


EVERY_RULE: list[Rule] = [
    *(rule() for rule in RULES if rule not in (Language, Url)),
    Html(when="always"),
    Language(keep=("en",)),
    Url(domains=("x.org",)),
    Lines(
        drop_matching=(r"a+b",), duplicates="drop", max_uppercase=0.5, max_digits=0.5, min_words=2
    ),
    Chinese(script="simplified", min_han=0.1, max_symbols=0.5, max_duplicate_13grams=0.5),
]
HOSTILE = {
    "letter": "a",
    "digit": "4",
    "mark": ",",
    "at": "a@",
    "bracket": "(中",
    "nul": "\x00",
    "accent": "\u0301",
    "thai": "ก\u0e31",
    "line": "a\n",
    "mojibake": "â€™ Ã",
    "colons": "2001:",
    "tags": "<p>",
}


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.name)
def test_hostile_text_takes_time_in_proportion_to_its_size(rule: Rule) -> None:
    if rule.name == "html" and not has_html():
        pytest.skip("lxml_html_clean is not installed")
    cleaner = Cleaner([rule])
    logging.disable(logging.CRITICAL)  # of the library that reads HTML, whose lines pytest keeps
    try:
        for kind, piece in HOSTILE.items():
            # A busy machine stretches one turn; what grows with the square fails them all.
            assert any(_is_proportional(cleaner, piece) for _ in range(5)), kind
    finally:
        logging.disable(logging.NOTSET)


def _is_proportional(cleaner: Cleaner, piece: str) -> bool:
    """Whether 8 times the text takes far from 64 times as long."""
    spent = []
    for size in (20_000, 160_000):
        text = piece * (size // len(piece))
        started = time.process_time()
        cleaner(text)
        spent.append(time.process_time() - started)
    return spent[1] < 0.2 + 24 * spent[0]


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.name)
def test_odd_text_is_decided(rule: Rule) -> None:
    if rule.name == "html" and not has_html():
        pytest.skip("lxml_html_clean is not installed")
    for text in (
        "x",
        "。",
        "\x00",
        " \n ",
        "\ufeff",
        "\U0010ffff",
        "\u0301",
        "a" * 5000,
        "\n" * 5000,
    ):
        text_after, dropped, _ = Cleaner([rule])(text)
        assert (text_after is None) != (dropped is None)
